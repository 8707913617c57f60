"""Every golden case of every method here, tensor by tensor."""

import pytest

from tests.golden.harness import Case, compare, find_cases


@pytest.mark.parametrize("case", list(find_cases()), ids=str)
def test_case_is_reproduced(case: Case) -> None:
    comparisons = compare(case)
    assert comparisons, "a case without a compared tensor proves nothing"
    worst = max(comparisons, key=lambda c: c.relative)
    print(f"\n{case}: {len(comparisons)} tensors, largest relative difference {worst.relative:.1e} in {worst.name}")
    failed = [f"{c.name}: {c.relative:.2e} > {c.tolerance:.0e}" for c in comparisons if not c.passed]
    assert not failed, "\n".join(failed)
