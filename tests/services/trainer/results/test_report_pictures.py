"""The pictures and files of the page: links that lead to them, previews that enlarge, samples in its own colors."""

from __future__ import annotations

from urllib.parse import unquote

from PIL import Image

from services.encoder.images.contact_sheet import Tile, contact_sheet_png
from services.trainer.results.history import History
from services.trainer.results.report import render_report
from services.trainer.results.samples import MOST_SHOWN
from tests.services.trainer.results.test_history import png_of, preview_of
from tests.services.trainer.results.test_report import DONE, LORA, Page


def test_files_are_links_to_what_lies_beside_the_page() -> None:
    names = ["lora.safetensors", "previews/000004-0.png", "a b#?.txt", "javascript:alert(1)", "//x.example/y"]
    files = [LORA.model_copy(update={"artifact_name": name}) for name in names]
    page = Page(render_report(DONE, History(), artifacts=files))
    addresses = [attributes["href"] or "" for attributes in page.all("a")]
    assert all(address.startswith(("#", "./")) for address in addresses)
    found = [unquote(address.removeprefix("./")) for address in addresses if address.startswith("./")]
    assert sorted(found) == sorted(names)
    assert "./a%20b%23%3F.txt" in addresses
    assert "fluxsmith download job-1 job-1 --all" in page.text


def test_a_preview_enlarges_and_leads_to_its_neighbors_and_its_file() -> None:
    history, events = History(), [(0, "a", "0-0"), (0, "b", "0-1"), (4, "a", "4-0"), (4, "b", "4-1")]
    files = [LORA.model_copy(update={"artifact_name": f"previews/{name}.png"}) for _, _, name in events]
    for (step, prompt, _), file in zip(events, files, strict=True):
        history.add(preview_of(step, prompt).model_copy(update={"image": file}), png=png_of(8))
    page = Page(render_report(DONE, history, artifacts=files))
    places = [attributes["id"] for attributes in page.all("td") if "id" in attributes]
    assert places == ["preview-0", "preview-1", "preview-2", "preview-3"]
    opened = [a["href"] for a in page.all("a") if a.get("class") == "open"]
    assert opened == [f"#{place}" for place in places]
    links = [a["href"] for a in page.all("a") if not a.get("class")][:14]
    assert links[:3] == ["#prompt-0", "./previews/0-0.png", "#preview-1"]
    assert links[3:7] == ["#preview-0", "#prompt-0", "./previews/4-0.png", "#preview-2"]
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert all(a["href"][1:] in ids for a in page.all("a") if (a["href"] or "").startswith("#"))  # type: ignore[index]


def test_samples_are_laid_out_by_the_page_in_its_own_colors() -> None:
    tiles = [
        Tile(image=Image.new("RGB", (64, 48), "green"), heading="a.png", facts="64 x 48 px", captions=("a <b>", "")),
        Tile(image=None, heading="b.png", facts="", captions=(), problem="it is damaged"),
        Tile(image=Image.new("RGB", (64, 64), "blue"), heading="c.png", facts="", captions=("x",) * 9),
    ]
    sheet = contact_sheet_png(tiles, title="pictures")
    page = Page(render_report(DONE, History(), contact_sheet_png=sheet, held_out_names=["c.png"]))
    shown = [image for image in page.all("img") if "px" in str(image["alt"]) or "c.png" in str(image["alt"])]
    assert [(image["width"], image["height"]) for image in shown] == [("256", "192"), ("256", "256")]
    assert not [image for image in page.all("img") if image.get("class") == "sheet "]
    for said in ("a.png 64 x 48 px a <b> (the empty caption)", "b.png it is damaged", "c.png held out", "5 more cap"):
        assert said in page.text


def test_only_so_many_samples_are_shown_and_the_others_counted() -> None:
    tile = Tile(image=Image.new("RGB", (8, 8), "green"), heading="a.png", facts="", captions=())
    sheet = contact_sheet_png([tile] * (MOST_SHOWN + 7), title="pictures")
    page = Page(render_report(DONE, History(), contact_sheet_png=sheet))
    assert sum(image["alt"] == "a.png, " for image in page.all("img")) == MOST_SHOWN
    assert "and 7 more pictures" in page.text
