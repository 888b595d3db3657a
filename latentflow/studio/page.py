"""The page itself. Everything that it shows comes from this process: it works without the internet."""

import asyncio
import base64
import random
from dataclasses import dataclass
from typing import Any

from nicegui import ui

from latentflow.errors import LatentflowError
from latentflow.generation.orders import Dials, Order
from latentflow.studio import catalogue
from latentflow.studio.catalogue import Version
from latentflow.studio.easel import Drawn, Easel

SHARP_BELOW, HISTORY = 200, 12
NOBODY = "none"
_STYLE = """
body { background: #f6f7f9 } body.body--dark { background: #0f1216 }
.panel { border-radius: 14px; box-shadow: none; border: 1px solid rgba(128,128,128,.22) }
.stage { width: 100%; max-width: 384px; aspect-ratio: 1; border-radius: 10px; overflow: hidden;
  background: repeating-conic-gradient(rgba(128,128,128,.10) 0% 25%, transparent 0% 50%) 50% / 24px 24px;
  display: flex; align-items: center; justify-content: center }
.stage img { width: 100%; height: 100%; object-fit: contain }
.sharp img { image-rendering: pixelated }
.faint { color: rgba(128,128,128,1) }
.figures td, .figures th { padding: 5px 12px 5px 0; text-align: left; font-variant-numeric: tabular-nums;
  border-bottom: 1px solid rgba(128,128,128,.18); vertical-align: top; overflow-wrap: anywhere }
.figures th { font-weight: 500; color: rgba(128,128,128,1) } .figures { width: 100%; font-size: 14px }
"""


@dataclass
class _Side:
    """One of the two pictures: which version, and where on the page it shows."""

    choice: ui.select
    stage: ui.element
    caption: ui.label
    save: ui.button
    drawn: Drawn | None = None


def serve(easel: Easel, model: str, host: str, port: int) -> None:
    """Serves the page until the process is told to end. ``model`` is the one shown at first, "" for any."""

    @ui.page("/", title="latentflow studio")
    def page() -> None:
        _Page(easel, model).build()

    ui.run(host=host, port=port, reload=False, show=False, title="latentflow studio", favicon="🎨", dark=None)


class _Page:
    """Builds the page for one visitor and answers what is clicked."""

    def __init__(self, easel: Easel, model: str) -> None:
        self._easel, self._asked_for = easel, model
        self._versions: dict[str, Version] = {}
        self._sides: list[_Side] = []

    def build(self) -> None:
        """Everything, or the sentence that says why there is nothing to show."""
        ui.add_css(_STYLE)
        with ui.column().classes("w-full max-w-6xl mx-auto px-4 py-6 gap-5"):
            try:
                names = catalogue.names()
                name = self._asked_for if self._asked_for in names else names[0]
                self._load(name)
            except LatentflowError as error:
                ui.label("latentflow studio").classes("text-2xl font-semibold")
                ui.label(str(error)).classes("text-negative").mark("failure")
                return
            self._head(names, name)
            with ui.row().classes("w-full gap-5 items-start no-wrap max-md:flex-wrap"):
                with ui.card().classes("panel w-80 shrink-0 max-md:w-full p-5 gap-3"):
                    self._form()
                with ui.column().classes("grow gap-5 min-w-0"):
                    self._stages()
                    self._history = ui.row().classes("gap-2")
            with ui.card().classes("panel w-full p-5 gap-2"):
                self._origins = ui.column().classes("w-full gap-1")
        self._show_origins()

    def _load(self, name: str) -> None:
        found = catalogue.versions(name)
        if not found:
            raise LatentflowError(f"Model {name!r} has no version that can be drawn with: run `latentflow register`.")
        self._versions = {version.label: version for version in found}

    def _head(self, names: list[str], name: str) -> None:
        with ui.row().classes("w-full items-end justify-between"):
            with ui.column().classes("gap-0"):
                ui.label("latentflow studio").classes("text-2xl font-semibold tracking-tight")
                ui.label("Try a registered model, or two of its versions side by side.").classes("faint text-sm")
            ui.select(names, value=name, label="Model", on_change=self._change_model).props("outlined dense").classes(
                "min-w-56"
            ).mark("model")

    def _form(self) -> None:
        box = "outlined dense"
        self._prompt = (
            ui.textarea("Prompt", value="red heart").props(f"{box} autogrow").classes("w-full").mark("prompt")
        )
        self._prompt.on("keydown.enter.prevent", self._draw)
        self._negative = ui.input("Not in the picture").props(box).classes("w-full").mark("negative")
        with ui.row().classes("w-full no-wrap items-center gap-2"):
            self._seed = ui.number("Seed", value=0, min=0, precision=0).props(box).classes("grow").mark("seed")
            ui.button(icon="casino", on_click=self._throw).props("flat round dense").tooltip("Another seed").mark(
                "dice"
            )
        with ui.expansion("More", icon="tune").classes("w-full").props("dense"):
            own = f"{box} placeholder=own stack-label"
            with ui.grid(columns=2).classes("w-full gap-2 pt-2"):
                self._steps = ui.number("Steps", min=1, precision=0).props(own)
                self._guidance = ui.number("Guidance", min=0, step=0.5).props(own)
                self._width = ui.number("Width", min=8, step=8, precision=0).props(own)
                self._height = ui.number("Height", min=8, step=8, precision=0).props(own)
            self._sampler = ui.select([NOBODY], value=NOBODY, label="Sampler").props(box).classes("w-full pt-2")
            self._sampler.set_options({NOBODY: "the model's own"}, value=NOBODY)
            ui.label("What is left empty is the value that the model was judged with.").classes("faint text-xs pt-1")
        self._button = ui.button("Draw", on_click=self._draw).props("unelevated no-caps").classes("w-full").mark("draw")
        self._message = ui.label().classes("text-negative text-sm").mark("message")

    def _stages(self) -> None:
        first, second = catalogue.first_choice(list(self._versions.values()))
        with ui.row().classes("w-full gap-5 no-wrap max-sm:flex-wrap"):
            self._stage("left", list(self._versions), first.label)
            self._stage("right", [NOBODY, *self._versions], second.label if second else NOBODY)

    def _stage(self, mark: str, options: list[str], value: str) -> None:
        with ui.card().classes("panel grow basis-0 p-4 gap-3 items-center min-w-0"):
            choice = ui.select(
                self._option_names(options), value=value, label="Version", on_change=self._change_version
            )
            choice.props("outlined dense").classes("w-full").mark(f"{mark}-version")
            stage = ui.element("div").classes("stage").mark(f"{mark}-stage")
            with stage:
                ui.icon("image", size="48px").classes("opacity-20")
            with ui.row().classes("w-full items-center justify-between no-wrap min-h-9"):
                caption = ui.label().classes("faint text-sm").mark(f"{mark}-caption")
                save = ui.button(icon="download").props("flat round dense").tooltip("Save the PNG")
                save.visible = False
            side = _Side(choice, stage, caption, save)
            save.on_click(lambda: self._save(side))
            self._sides.append(side)

    @staticmethod
    def _option_names(options: list[str]) -> dict[str, str]:
        return {option: "no second version" if option == NOBODY else option for option in options}

    def _change_model(self, event: Any) -> None:
        try:
            self._load(event.value)
        except LatentflowError as error:
            self._message.set_text(str(error))
            return
        first, second = catalogue.first_choice(list(self._versions.values()))
        left, right = self._sides
        left.choice.set_options(self._option_names(list(self._versions)), value=first.label)
        right.choice.set_options(
            self._option_names([NOBODY, *self._versions]), value=second.label if second else NOBODY
        )
        self._show_origins()

    def _change_version(self) -> None:
        for side in self._sides:
            self._empty(side)
        self._show_origins()

    def _chosen(self) -> list[tuple[_Side, Version]]:
        return [
            (side, self._versions[side.choice.value]) for side in self._sides if side.choice.value in self._versions
        ]

    def _throw(self) -> None:
        self._seed.set_value(random.randrange(10_000))

    def _dials(self) -> Dials:
        sampler = None if self._sampler.value == NOBODY else self._sampler.value
        numbers = {
            "steps": self._steps.value,
            "width": self._width.value,
            "height": self._height.value,
        }
        whole = {name: int(value) for name, value in numbers.items() if value is not None}
        return Dials(**whole, guidance=self._guidance.value, sampler=sampler)

    async def _draw(self) -> None:
        if not self._button.enabled:
            return
        self._message.set_text("")
        if self._seed.value is None or not str(self._prompt.value).strip():
            self._message.set_text("Give a prompt and a seed.")
            return
        order = Order(str(self._prompt.value).strip(), int(self._seed.value), str(self._negative.value or "").strip())
        dials = self._dials()
        self._button.disable()
        try:
            for side, version in self._chosen():
                await self._draw_side(side, version, order, dials)
            await self._offer_samplers()
        except LatentflowError as error:
            self._message.set_text(str(error))
        finally:
            self._button.enable()
        self._remember(order)

    async def _draw_side(self, side: _Side, version: Version, order: Order, dials: Dials) -> None:
        side.drawn, side.save.visible = None, False
        side.stage.clear()
        side.caption.set_text("drawing")
        with side.stage:
            ui.spinner(size="lg")
        try:
            drawn = await asyncio.to_thread(self._easel.draw, version.uri, order, dials)
        except LatentflowError:
            self._empty(side)
            raise
        side.drawn = drawn
        side.stage.clear()
        with side.stage:
            picture = ui.html(f'<img alt="" src="{_address(drawn)}">', sanitize=False).classes("w-full h-full")
        if max(drawn.width, drawn.height) < SHARP_BELOW:
            picture.classes("sharp")
        used = drawn.dials
        side.caption.set_text(
            f"seed {order.seed} · {used.steps} steps · guidance {used.guidance:g} · {drawn.seconds:.1f} s"
        )
        side.save.visible = True

    def _empty(self, side: _Side) -> None:
        side.drawn, side.save.visible = None, False
        side.stage.clear()
        with side.stage:
            ui.icon("image", size="48px").classes("opacity-20")
        side.caption.set_text("")

    async def _offer_samplers(self) -> None:
        """The names that every chosen version has; known once they are pulled."""
        offered = [await asyncio.to_thread(self._easel.samplers, version.uri) for _, version in self._chosen()]
        common = [name for name in offered[0] if all(name in others for others in offered)]
        value = self._sampler.value if self._sampler.value in common else NOBODY
        self._sampler.set_options({NOBODY: "the model's own"} | {name: name for name in common}, value=value)

    def _remember(self, order: Order) -> None:
        """A small picture of each drawing that brings its prompt and seed back."""
        shown = [side.drawn for side in self._sides if side.drawn]
        if not shown:
            return

        def bring_back() -> None:
            self._prompt.set_value(order.prompt)
            self._seed.set_value(order.seed)
            self._negative.set_value(order.negative_prompt)

        with self._history:
            small = ui.html(f'<img width="52" height="52" alt="" src="{_address(shown[0])}">', sanitize=False)
            small.classes("sharp rounded overflow-hidden cursor-pointer").on("click", bring_back)
            with small:
                ui.tooltip(f"{order.prompt}, seed {order.seed}")
        pictures = list(self._history)
        if len(pictures) > HISTORY:
            pictures[0].delete()

    def _save(self, side: _Side) -> None:
        if side.drawn:
            ui.download.content(side.drawn.png, f"{side.choice.value.replace(' ', '-').replace('@', '')}.png")

    def _show_origins(self) -> None:
        """Figures and lineage of what is chosen, a column per version."""
        chosen = [version for _, version in self._chosen()]
        told = [{"registered": f"{version.created:%Y-%m-%d %H:%M} UTC"} | version.lineage for version in chosen]
        self._origins.clear()
        with self._origins:
            with ui.expansion("Figures", value=True).classes("w-full font-medium").mark("figures"):
                _table(chosen, [catalogue.headlines(version.metrics) for version in chosen])
            with ui.expansion("All figures").classes("w-full font-medium"):
                every = [version.metrics for version in chosen]
                _table(chosen, [{key: f"{value:.4g}" for key, value in one.items()} for one in every])
            with ui.expansion("Where they come from").classes("w-full font-medium").mark("lineage"):
                _table(chosen, told)


def _table(chosen: list[Version], columns: list[dict[str, str]]) -> None:
    """Rows by name, a column per version."""
    rows = sorted({name for column in columns for name in column})
    with ui.element("table").classes("figures font-normal"):
        with ui.element("tr"):
            for text in ["", *(version.label for version in chosen)]:
                with ui.element("th"):
                    ui.label(text)
        for name in rows:
            with ui.element("tr"):
                for text in [name.replace("_", " "), *(column.get(name, "") for column in columns)]:
                    with ui.element("td"):
                        ui.label(text)


def _address(drawn: Drawn) -> str:
    return f"data:image/png;base64,{base64.b64encode(drawn.png).decode()}"
