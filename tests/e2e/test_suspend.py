"""A job suspended in the midst of its training, and resumed."""

import time

from support import site as sites
from support.site import Site, condition


def test_suspend_saves_a_checkpoint_and_resume_continues_from_it(site: Site) -> None:
    name = "pausing"
    data = site.upload_rows("pausing/train.jsonl", sites.chats(160))
    training_spec = {
        "maxSteps": 1500,
        "batchSize": 2,
        "learningRate": 0.001,
        "lora": {"rank": 8},
        "checkpoints": {"everyMinutes": 60, "keep": 1},
        "earlyStopping": {"patience": 100},
    }
    spec = site.spec(data, training=training_spec)
    site.apply(name, spec)
    site.until(name, lambda job: (job.get("status", {}).get("progress") or {}).get("step", 0) > 20, "training", 180)
    site.apply(name, {**spec, "suspend": True})
    site.until_condition(name, "Suspended", seconds=30)
    began = time.monotonic()
    while site.pods(name, stage="train") and time.monotonic() - began < 90:
        time.sleep(0.5)
    assert not site.pods(name, stage="train"), "the suspended pod did not end"
    site.apply(name, {**spec, "suspend": False})
    done = site.until_condition(name, "Complete", seconds=300)
    assert "resumed from step" in condition(done, "Trained")["message"]
