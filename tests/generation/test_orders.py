"""What is asked for: prompts, files of prompts, seeds, sizes, and what is refused with the place named."""

from pathlib import Path

import pytest

from latentflow.errors import LatentflowError
from latentflow.generation.asked import Asked, read
from latentflow.generation.orders import Dials, Order, parse_seeds, parse_size, read_orders


def test_seeds_are_numbers_and_ranges_in_their_order() -> None:
    assert parse_seeds("7") == [7]
    assert parse_seeds("0-3, 9,5-6") == [0, 1, 2, 3, 9, 5, 6]


@pytest.mark.parametrize("text", ["", "3-1", "a", "1,,2", "-1", "0-999999999", "1-2-3"])
def test_what_is_no_seeds(text: str) -> None:
    with pytest.raises(LatentflowError, match="seeds are"):
        parse_seeds(text)


def test_sizes() -> None:
    assert parse_size("64") == Dials(width=64, height=64)
    assert parse_size("96x64") == Dials(width=96, height=64)
    with pytest.raises(LatentflowError, match="size is '96:64'"):
        parse_size("96:64")


def test_a_text_file_is_a_prompt_per_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("red heart\n\n  {not json}  \n", encoding="utf-8")
    assert read_orders(file, [1, 2], "blurry") == [
        Order("red heart", 1, "blurry"),
        Order("red heart", 2, "blurry"),
        Order("{not json}", 1, "blurry"),
        Order("{not json}", 2, "blurry"),
    ]


def test_a_jsonl_file_says_more(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a", "seed": 5}\n{"prompt": "b", "negative_prompt": ""}\n')
    assert read_orders(file, negative_prompt="ugly") == [Order("a", 5, "ugly"), Order("b", 0, "")]
    with pytest.raises(LatentflowError, match=r"line 1 names its seed, and seeds were asked for"):
        read_orders(file, [0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n{"promt": "b"}', r"prompts\.jsonl, line 2: prompt: Field required"),
        ('{"prompt": "a", "sed": 1}', r"line 1: sed: Extra inputs are not permitted"),
        ('{"prompt": "a", "seed": -1}', "line 1: seed: Input should be greater"),
        ("red heart", "line 1 is not JSON"),
        ('"red heart"', "line 1: Input should be"),
        ("\n\n", "holds no prompts"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    with pytest.raises(LatentflowError, match=message):
        read_orders(file)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    for name in ("absent.txt", "picture.png"):
        with pytest.raises(LatentflowError, match=f"{name} cannot be read"):
            read_orders(tmp_path / name)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked(), "Nothing given: give one of --prompt"),
        (Asked(prompts=("a",), prompts_file=Path("f")), "--prompt and --prompts-file given"),
        (Asked(prompts=("a",), seed=1, seeds="0-3"), "--seed and --seeds"),
        (Asked(again=Path("p.png"), seed=1), "--again takes seeds"),
    ],
)
def test_options_that_contradict_each_other(asked: Asked, message: str) -> None:
    with pytest.raises(LatentflowError, match=message):
        read(asked, Dials(), None, "models:/m@champion")


def test_prompts_and_seeds_make_a_sweep() -> None:
    request = read(Asked(prompts=("a", "b"), seeds="0-1", negative="x"), Dials(steps=3), None, "models:/m@champion")
    assert (request.model, request.dials) == ("models:/m@champion", Dials(steps=3))
    assert [(order.prompt, order.seed) for order in request.orders] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
