"""The demo: pick or upload a picture, drag the size of its object, see what WSMS and its plain backbone take it for.

    python hub/space/app.py

Models: those in hub/models/, or what WSMS_MODEL and PLAIN_MODEL name (`hf-hub:ORG/NAME`, `local-dir:FOLDER`).
Examples: `<class>/<name>` in hub/space/examples/, or in the folder that EXAMPLES names; its README.md says whose.
"""

import sys
from pathlib import Path

import gradio as gr

from demo import views
from demo.networks import Pair, load_pair
from demo.pictures import find_examples, open_picture, read_credits
from timm_wsms import cli_errors
from timm_wsms.errors import UserError

HERE = Path(__file__).resolve().parent
INTRO = """
# Recognized at any size?

Two networks that were trained alike: **WSMS** looks at a picture at several resolutions, its **plain backbone** at one.
Pick a picture and drag the slider: which of them still knows what it is?
"""


def build(pair: Pair, examples: list[Path]) -> gr.Blocks:
    """The page. Its state is the picture as the networks take it, and its true label if that is known.

    Args:
        pair: The networks.
        examples: Pictures, each in a folder that is named after what it shows.
    """

    def show(octaves, chosen):
        factor = 2.0**octaves
        picture, truth = chosen
        seen = pair.see(picture, factor)
        return views.picture(seen, factor), views.answers(seen, truth), views.stages(seen)

    def pick(octaves, event: gr.SelectData):
        chosen = example(examples[event.index])
        return chosen, "", *show(octaves, chosen)

    def take(path, octaves, chosen):
        message = ""
        try:
            chosen = pair.prepare(open_picture(path)), None
        except UserError as error:
            message = views.message(str(error))
        return chosen, message, *show(octaves, chosen)

    def example(path):
        return pair.prepare(open_picture(path)), path.parent.name

    with gr.Blocks(title="Recognized at any size?", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        chosen = gr.State(example(examples[0]))
        gr.Markdown(INTRO)
        with gr.Row():
            with gr.Column(scale=2):
                gallery = gr.Gallery(
                    [str(path) for path in examples],
                    format="jpeg",
                    columns=4,
                    allow_preview=False,
                    interactive=False,
                    show_label=False,
                    buttons=[],
                    elem_id="examples",
                )
                upload = gr.UploadButton("Upload your own", file_types=["image"], size="sm", elem_id="upload")
                message = gr.HTML(elem_id="message")
                picture = gr.HTML(elem_id="picture")
                with gr.Group():
                    size = gr.Slider(-2, 2, 0, step=0.25, label="Size of the object", buttons=[], elem_id="size")
                    gr.HTML(views.TICKS, elem_id="ticks")
            with gr.Column(scale=3):
                answers = gr.HTML(elem_id="answers")
                stages = gr.HTML(elem_id="stages")
        gr.HTML(views.known(pair.labels))
        gr.HTML(views.scale(pair.scale_plot()), elem_id="scale")
        gr.Markdown(read_credits(), elem_id="credits")

        shown = [picture, answers, stages]
        page.load(show, [size, chosen], shown, show_progress="hidden")
        size.input(show, [size, chosen], shown, show_progress="hidden", trigger_mode="always_last")
        gallery.select(pick, size, [chosen, message, *shown], show_progress="hidden")
        upload.upload(take, [upload, size, chosen], [chosen, message, *shown], show_progress="hidden")
    return page


def main() -> None:
    """Serves the page until it is stopped."""
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # nothing to download
    style = HERE / "style.css"
    examples = find_examples()
    page = build(load_pair(), examples)
    page.launch(
        theme=theme,
        css_paths=style,
        allowed_paths=[str(path.resolve()) for path in examples],  # Gradio serves no others
        max_file_size="20mb",
        footer_links=[],
        run_history=False,
    )


if __name__ == "__main__":
    sys.exit(cli_errors.run(main, cli_errors.Remedies()))
