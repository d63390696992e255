"""Classifiers of others as rewards: tiny random ones as transformers and PEFT save them, read by a real PPO stage."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from reward.config import RewardTerm
from stages.base import InputError, StageContext
from stages.models.classifiers import TextClassifier
from stages.models.config import ModelConfig
from stages.ppo.config import PPOConfig
from stages.ppo.foreign_reward import FILE, Centring
from stages.ppo.stage import run_ppo
from tests.toy_models import VOCABULARY, context, save_toy, toy_config, toy_tokenizer, write_rows

LABELS = {0: "bad", 1: "so so", 2: "good"}
STARTS = ("the film", "a plot", "my seat", "this cast")
SHOWN = [{"prompt": s, "completion": f" is {end}"} for s in STARTS for end in ("good.", "bad!", "so so, so so")]
CONFIG = PPOConfig(
    steps=1, max_new_tokens=12, rollout_batch_size=8, minibatch_size=8, microbatch_size=8, ppo_epochs=1,
    missing_eos={"mode": "off"}, max_empty_fraction=1.0, checkpoint_every=0,
)  # fmt: skip
MESSAGES = "{% for m in messages %}{{ m['role'][:1] + ':' + m['content'] + '\n' }}{% endfor %}"


def save_classifier(folder: Path, kind: str) -> Path:
    """An encoder and a decoder with three labels, the latter with a template, a decoder with one, an adapter."""
    torch.manual_seed(5)
    template = MESSAGES if kind == "decoder" else None
    if kind == "encoder":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        config = BertConfig(vocab_size=VOCABULARY, max_position_embeddings=40, initializer_range=0.3, **sizes)
    else:
        config = toy_config("gpt2" if kind == "one label" else "llama")
    config.id2label = {0: "score"} if kind == "one label" else LABELS
    config.pad_token_id = None if kind == "one label" else config.pad_token_id
    model = AutoModelForSequenceClassification.from_config(config)
    if kind == "adapter":
        model.save_pretrained(folder / "base")
        lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"], init_lora_weights=False)
        model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=3), lora)
        torch.nn.init.normal_(model.get_base_model().score.modules_to_save["default"].weight)
    model.save_pretrained(folder / "classifier")
    toy_tokenizer(chat_template=template, model_max_length=int(1e30)).save_pretrained(folder / "classifier")
    return folder / "classifier"


KINDS = ["encoder", "decoder", "one label", "adapter"]


def own_score(folder: Path, text: str, label: int, kind: str) -> float:
    """What transformers, and PEFT, say of a text by themselves."""
    if kind == "adapter":
        from peft import AutoPeftModelForSequenceClassification

        model = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(text, add_special_tokens=kind != "decoder", return_tensors="pt")
    with torch.no_grad():
        return float(model.eval()(encoded.input_ids, attention_mask=encoded.attention_mask).logits[0, label])


def as_read(kind: str, prompt: str, completion: str) -> str:
    return f"u:{prompt}\na:{completion}\n" if kind == "decoder" else prompt + completion


def ppo(folder: Path, term: RewardTerm, shown: list[dict[str, Any]], services: StageContext | None = None) -> Any:
    base = folder / "policy"
    base = base if base.is_dir() else save_toy(base)
    rows = write_rows(folder / "prompts.jsonl", [{"prompt": s} for s in STARTS] * 2)
    services = services or context(folder / "ppo")
    run_ppo(CONFIG, ModelConfig(path=str(base)), rows, None, None, [term], None, None, services, shown=shown)
    return services.tracker


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_has_the_score_that_the_model_gives_its_text(kind: str, tmp_path: Path):
    folder = save_classifier(tmp_path, kind)
    label = 0 if kind == "one label" else 2
    term = RewardTerm(model=str(folder), label_index=None if kind == "one label" else 2, standardise=True)
    tracker = ppo(tmp_path, term, SHOWN)
    kept = json.loads((tmp_path / "ppo" / FILE).read_text())[f"{folder}:{label}"]
    shown = torch.tensor([own_score(folder, as_read(kind, **row), label, kind) for row in SHOWN])
    assert (kept["mean"], kept["std"], kept["n"]) == (
        pytest.approx(float(shown.mean()), abs=1e-5),
        pytest.approx(float(shown.std(correction=0)), abs=1e-5),
        12,
    )
    for row in tracker.rows:
        raw = own_score(folder, as_read(kind, row["prompt"], row["completion"]), label, kind)
        assert row["terms"]["model"] == pytest.approx((raw - kept["mean"]) / kept["std"], abs=1e-4)
        assert row["score"] == row["terms"]["model"]
    assert len({row["score"] for row in tracker.rows}) > 4


def test_constants_are_measured_once_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = save_classifier(tmp_path, "one label")
    term = RewardTerm(model=str(folder))
    ppo(tmp_path, term, SHOWN)
    first = (tmp_path / "ppo" / FILE).read_text()
    assert "on 12 demonstrations" in capsys.readouterr().out
    services = replace(context(tmp_path / "ppo"))
    ppo(tmp_path, term, SHOWN[:3], services)
    assert (tmp_path / "ppo" / FILE).read_text() == first
    assert "demonstrations" not in capsys.readouterr().out


def test_without_demonstrations_scores_are_as_they_come(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = save_classifier(tmp_path, "one label")
    tracker = ppo(tmp_path, RewardTerm(model=str(folder)), [])
    assert f"reward model {folder}:0: no demonstrations, so its scores are not centred" in capsys.readouterr().out
    row = tracker.rows[0]
    raw = own_score(folder, row["prompt"] + row["completion"], 0, "one label")
    assert row["score"] == pytest.approx(raw, abs=1e-5)


def test_at_most_256_demonstrations_are_read_spread_over_all():
    seen: list[int] = []
    Centring(demonstrations=[{"row": i} for i in range(1000)]).constants(
        "m", lambda rows: [float(seen.append(row["row"]) or row["row"]) for row in rows]
    )
    assert (len(seen), seen[:2], seen[-1]) == (250, [0, 4], 996)


def test_a_model_that_says_the_same_of_all_texts_is_refused():
    with pytest.raises(InputError, match="RM08"):
        Centring(demonstrations=[{}, {}]).constants("m", lambda rows: [1.0, 1.0])


def test_a_text_beyond_the_positions_loses_its_beginning(tmp_path: Path):
    read = TextClassifier.load(str(save_classifier(tmp_path, "encoder")), 2, "float32", "float32")
    assert read.limit == 40
    ids = read.ids("a" * 100, " the end")
    assert len(ids) == 40 and read.tokenizer.decode(ids[-8:]) == " the end"
    assert len(read([ids])) == 1


def test_members_of_both_kinds_make_one_ensemble(tmp_path: Path):
    folders = [save_classifier(tmp_path / kind, kind) for kind in ("encoder", "decoder")]
    term = RewardTerm(model=[str(f) for f in folders], label_index=1, combine="min")
    tracker = ppo(tmp_path, term, [])
    for row in tracker.rows:
        raw = [
            own_score(folder, as_read(kind, row["prompt"], row["completion"]), 1, kind)
            for folder, kind in zip(folders, ("encoder", "decoder"), strict=True)
        ]
        assert row["score"] == pytest.approx(min(raw), abs=1e-4)


def test_a_folder_without_head_is_refused(tmp_path: Path):
    save_toy(tmp_path / "lm")
    config = AutoConfig.from_pretrained(tmp_path / "lm")
    config.architectures, config.num_labels = ["LlamaForSequenceClassification"], 1
    config.save_pretrained(tmp_path / "lm")
    with pytest.raises(InputError, match="RM04"):
        TextClassifier.load(str(tmp_path / "lm"), None, "float32", "float32")
