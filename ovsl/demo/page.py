"""The page: its parts, and what happens when they are touched."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from ovsl.demo.answers import Answers, Sample
from ovsl.demo.view import answers_html
from ovsl.errors import InputError
from ovsl.progress import watched

NOBODY = "nothing"
"""What stands beside a method when it is not compared."""
EMPTY = '<div class="ovsl-empty">Drop a photo or take a sample, type words, and press Segment.</div>'
HINT = "One word a line; commas separate names of the same thing. Or the name of a shipped list, such as ade20k_150."


def build_page(answers: Answers, samples: Sequence[Sample]) -> Any:
    """Build the page.

    Args:
        answers: Who is asked.
        samples: Photos to take, in the order shown; at least one.

    Returns:
        Gradio's `Blocks`.
    """
    import gradio as gr

    names = list(answers.methods)
    has_segments = any(method.module.predicts_masks for method in answers.methods.values())

    bar = gr.Progress()

    def ask(photo: str | None, words: str, first: str, second: str, bar: Any = bar) -> tuple[str, Any]:
        try:
            with watched(lambda done, of, what: bar((done, of), desc=what)):
                found, files = answers.ask(photo, words, first, second)
        except InputError as error:
            raise gr.Error(escape(str(error)), print_exception=False) from error
        return answers_html(found), gr.update(value=[str(file) for file in files], visible=True)

    def take(index: int, words: str) -> tuple[str, str]:
        return samples[index][0], samples[index][1] or words

    with gr.Blocks(analytics_enabled=False, title="ovsl", delete_cache=(600, 3600), fill_width=True) as page:
        gr.Markdown(
            "# ovsl\nEvery pixel of a photo gets one of your words. Nothing leaves this machine.", elem_id="ovsl-head"
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=320):
                photo = gr.Image(
                    label="Photo", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=240,
                    elem_id="ovsl-photo", buttons=[],
                )  # fmt: skip
                shelf = gr.Dataset(
                    label="Samples", components=[photo], samples=[[path] for path, _ in samples], type="index",
                    samples_per_page=12, elem_id="ovsl-samples",
                )  # fmt: skip
                words = gr.Textbox(
                    label="Words", info=HINT, lines=6, max_lines=14, value=samples[0][1], elem_id="ovsl-words"
                )
                with gr.Row(visible=len(names) > 1):
                    first = gr.Dropdown(names, value=names[0], label="Method", elem_id="ovsl-first", min_width=120)
                    second = gr.Dropdown(
                        [NOBODY, *names], value=names[1] if len(names) > 1 else NOBODY, label="Beside it",
                        elem_id="ovsl-second", min_width=120,
                    )  # fmt: skip
                button = gr.Button("Segment", variant="primary", elem_id="ovsl-ask")
            with gr.Column(scale=2, min_width=480):
                with gr.Row():
                    opacity = gr.Slider(
                        0, 1, 0.55, step=0.01, label="Opacity of the labels", elem_id="ovsl-opacity", buttons=[]
                    )
                    view = gr.Radio(
                        ["words", "segments"], value="words", label="View", visible=has_segments, elem_id="ovsl-view"
                    )
                shown = gr.HTML(EMPTY, elem_id="ovsl-answer", apply_default_css=False)
                files = gr.Files(label="Download", elem_id="ovsl-files", interactive=False, visible=False)
        # In the browser, so that the picture follows the hand.
        root = "document.documentElement"
        opacity.input(None, opacity, js=f"(value) => {{ {root}.style.setProperty('--ovsl-opacity', value) }}")
        view.input(None, view, js=f"(value) => {{ {root}.dataset.ovslView = value }}")
        shelf.click(take, [shelf, words], [photo, words], api_visibility="private", show_progress="hidden")
        button.click(
            ask, [photo, words, first, second], [shown, files], api_visibility="private", show_progress_on=shown,
            concurrency_limit=1,
        )  # fmt: skip
    page.queue(max_size=16, api_open=False)
    return page
