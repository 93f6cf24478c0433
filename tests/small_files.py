"What the tests of several loaders share: small files, and the refusal of a bad one."

import json

import pytest

from xgdetox.files import InputError


def jsonl(path, rows):
    "The path, where the rows now stand as JSON Lines."
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def refused(function, *arguments, **named) -> InputError:
    "The error that a function raises: one line, with a remedy."
    with pytest.raises(InputError) as caught:
        function(*arguments, **named)
    assert "\n" not in str(caught.value) and caught.value.remedy
    return caught.value


def pair(prompt="The cat", chosen=" sat.", rejected=" hissed.", **more) -> dict:
    "A row of dpo_toxic's preference pairs."
    return {"prompt_text": prompt, "unpert_gen_text": chosen, "pert_gen_text": rejected, **more}
