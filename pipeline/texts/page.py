"""Rows as the model sees them, as one page without external resources."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.texts.view import StageView, meanings

_HERE = Path(__file__).parent
_TITLES = {"sft": "Supervised fine-tuning", "reward_model": "Reward model", "ppo": "PPO"}


def write_page(views: Sequence[StageView], name: str, target: Path, ids: bool) -> None:
    """Write the page of a run's data; its folder is made."""
    # Rows are untrusted text: nothing reaches the page unescaped. The report's style is this page's too.
    environment = Environment(
        loader=FileSystemLoader([_HERE, _HERE.parent / "report"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("data.html.jinja")
    page = template.render(views=views, name=name, ids=ids, titles=_TITLES, meanings=meanings(views))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
