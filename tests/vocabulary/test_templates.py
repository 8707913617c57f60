import pytest

from ovsl.errors import InputError
from ovsl.vocabulary import available_templates, load_templates


@pytest.mark.parametrize("name", available_templates())
def test_every_template_has_one_place_for_the_name(name):
    templates = load_templates(name)
    assert templates
    assert all(template.count("{}") == 1 for template in templates)
    assert len(set(templates)) == len(templates)


def test_published_sets():
    open_clip = pytest.importorskip("open_clip")
    imagenet = load_templates("imagenet_80")
    assert imagenet == tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    assert load_templates("imagenet_7") == tuple(template("{}") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES)
    assert load_templates("maskclip_85")[:80] == imagenet
    assert load_templates("maskclip_85")[80] == "there is a {} in the scene."
    # ViLD's entries end with a full stop or not as released; ZegCLIP's all do.
    full_stops = [template.endswith(".") for template in load_templates("vild_14")]
    assert [index for index, stop in enumerate(full_stops) if not stop] == [1, 2, 3, 4]
    assert len(load_templates("zegclip_15")) == 15
    assert all(template.endswith(".") for template in load_templates("zegclip_15"))


def test_unknown_set_names_a_close_one_and_all():
    with pytest.raises(InputError, match=r"unknown template set 'imagenet80': did you mean 'imagenet_80'.*vild_14"):
        load_templates("imagenet80")
