"""The data of the quickstart job."""

import json
import pathlib
import subprocess
import sys

from finetune_api import job
from finetune_trainer.data import dataset

FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "support-desk"


def test_the_committed_file_is_what_the_script_makes() -> None:
    subprocess.run([sys.executable, str(FOLDER / "make_data.py"), "--check"], check=True)


def test_every_answer_is_json_with_the_four_keys_and_no_message_comes_twice() -> None:
    lines = (FOLDER / "train.jsonl").read_text().splitlines()
    found = [dataset.example(json.loads(line), job.Format.CHAT, "x:1") for line in lines]
    assert len(found) == 320
    assert len({example.key() for example in found}) == 320
    answers = [json.loads(example.answer or "") for example in found]
    assert all(list(answer) == ["intent", "priority", "product", "reply"] for answer in answers)
    assert len({answer["intent"] for answer in answers}) == 6
