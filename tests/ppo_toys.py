"""PPO problems small enough to enumerate: every completion, hence the exact optimum of the objective.

Token 0 is the stop token of every toy and a completion reads as letters, `stop` left out, so its text names it.
Axes: P prompts, N completions, V actions, T completion tokens, K states, B batch, S columns.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GenerationMixin,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from reward.mixture import FunctionScores, RewardMixture, Term
from stages.engine import SCHEDULES, TorchEngine
from stages.models.heads import PolicyModel, ScoreModel
from stages.models.trunk import NoTrunk
from stages.ppo.config import PPOConfig
from stages.ppo.ema import EMA
from stages.ppo.kl import AdaptiveKL, FixedKL
from stages.ppo.prompts import PromptBatch, PromptSet
from stages.ppo.ptx import PretrainingMix
from stages.ppo.scores import RunningMoments, ScoreRule
from stages.ppo.trainer import PPOTrainer, Step
from stages.render import Rendered
from stages.rollout import Sampler

STOP = 0
NEVER = -1e4  # logit of an id that is no action: its probability is 0 in float32


def text(ids: Sequence[int]) -> str:
    return "".join(chr(ord("a") + i - 1) for i in ids if i != STOP)


def decode(completions: Tensor, mask: Tensor) -> list[str]:
    return [text(ids[m].tolist()) for ids, m in zip(completions, mask, strict=True)]


def every_completion(actions: int, width: int) -> list[list[int]]:
    """All words over `actions` tokens that end with the stop token, or are cut off at `width`."""
    words = range(1, actions)
    stopped = [[*w, STOP] for n in range(width) for w in product(words, repeat=n)]
    return stopped + [list(w) for w in product(words, repeat=width)]


@dataclass(frozen=True)
class Problem:
    """Prompts, all their completions (stop token included) and a score for each pair."""

    prompts: list[list[int]]
    completions: list[list[int]]
    scores: Tensor  # float64 [P, N]

    def reward(self) -> RewardMixture:
        """The table of scores as a user's reward function of texts."""
        table = {
            (text(p), text(c)): float(self.scores[i, j])
            for i, p in enumerate(self.prompts)
            for j, c in enumerate(self.completions)
        }

        def look_up(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
            return [table[pair] for pair in zip(prompts, completions, strict=True)]

        return RewardMixture([Term("table", 1.0, FunctionScores("table", look_up, {}))])

    @torch.no_grad()
    def logprobs(self, lm: nn.Module, temperature: float) -> Tensor:
        """log pi(completion | prompt), float64 [P, N], by one plain forward per prompt without left padding."""
        width = max(len(c) for c in self.completions)
        padded = torch.tensor([c + [STOP] * (width - len(c)) for c in self.completions])
        mask = torch.tensor([[True] * len(c) + [False] * (width - len(c)) for c in self.completions])
        rows = []
        for prompt in self.prompts:
            ids = torch.cat([torch.tensor(prompt).expand(len(padded), -1), padded], 1)
            attention = torch.cat([torch.ones(len(padded), len(prompt), dtype=torch.bool), mask], 1)
            logits = lm(input_ids=ids, attention_mask=attention.long()).logits[:, len(prompt) - 1 : -1]
            chosen = (logits.double() / temperature).log_softmax(-1).gather(-1, padded.unsqueeze(-1)).squeeze(-1)
            rows.append(torch.where(mask, chosen, 0.0).sum(1))
        return torch.stack(rows)


@dataclass(frozen=True)
class Exact:
    """Where a policy stands, with no sampling error: means over prompts, KL in nats per completion."""

    kl: float
    score: float
    best_kl: float
    best_score: float
    klopt: float
    """KL(pi || pi*)"""
    frac: float
    """(J - J_ref) / (J* - J_ref)"""


def exact(problem: Problem, policy: nn.Module, reference: nn.Module, beta: float, temperature: float) -> Exact:
    """Enumerates `J = E[score] - beta KL` and its optimum `pi* = pi_ref exp(score / beta) / Z`."""
    pi, ref = (problem.logprobs(lm, temperature) for lm in (policy, reference))
    log_z = torch.logsumexp(ref + problem.scores / beta, 1, keepdim=True)
    star = ref + problem.scores / beta - log_z

    def mean(logprobs: Tensor, of: Tensor) -> float:
        return float((logprobs.exp() * of).sum(1).mean())

    score, kl, klopt = mean(pi, problem.scores), mean(pi, pi - ref), mean(pi, pi - star)
    best, start, now = beta * float(log_z.mean()), mean(ref, problem.scores), score - beta * kl
    torch.testing.assert_close(pi.exp().sum(1), torch.ones(len(pi), dtype=torch.float64), atol=1e-5, rtol=0)
    assert abs((best - now) - beta * klopt) < 1e-4  # J* - J = beta KL(pi || pi*), whatever the policy
    return Exact(kl, score, mean(star, star - ref), mean(star, problem.scores), klopt, (now - start) / (best - start))


def trie(problem: Problem, vocabulary: int) -> Tensor:
    """child[state, token], long [K, vocabulary]: one state per text, state 0 before all; 0 where no text goes on."""
    children = [[0] * vocabulary]
    for prompt, completion in product(problem.prompts, problem.completions):
        state = 0
        for token in [*prompt, *completion]:
            if not children[state][token]:
                children[state][token] = len(children)
                children.append([0] * vocabulary)
            state = children[state][token]
    return torch.tensor(children)


class TabularDecoder(nn.Module):
    """The text up to each column as a one-hot state; padding leaves the state as it is."""

    def __init__(self, child: Tensor):
        super().__init__()
        self.register_buffer("child", child)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, **unused: Any) -> BaseModelOutput:
        if attention_mask is None:  # generate() drops a mask that is all ones
            attention_mask = torch.ones_like(input_ids)
        state = torch.zeros_like(input_ids[:, 0])
        states = []
        for ids, attended in zip(input_ids.unbind(1), attention_mask.bool().unbind(1), strict=True):
            state = torch.where(attended, self.child[state, ids], state)
            states.append(state)
        one_hot = nn.functional.one_hot(torch.stack(states, 1), len(self.child)).float()
        return BaseModelOutput(last_hidden_state=one_hot)


class Table(nn.Module):
    """A row of logits per state; ids that are no actions get NEVER."""

    def __init__(self, logits: Tensor, vocabulary: int):
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.others = vocabulary - logits.shape[1]

    def forward(self, one_hot: Tensor) -> Tensor:
        logits = one_hot @ self.logits
        return torch.cat([logits, logits.new_full((*logits.shape[:-1], self.others), NEVER)], -1)


class TabularConfig(PreTrainedConfig):
    model_type = "tabular"


class TabularPolicy(PreTrainedModel, GenerationMixin):
    """A policy with one logit per state and action, behind the interface of a causal language model."""

    config_class = TabularConfig
    base_model_prefix = "decoder"

    def __init__(self, child: Tensor, logits: Tensor):
        super().__init__(TabularConfig(vocab_size=child.shape[1], num_hidden_layers=1))
        self.decoder = TabularDecoder(child)
        self.table = Table(logits, child.shape[1])
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, **unused: Any) -> CausalLMOutput:
        return CausalLMOutput(logits=self.table(self.decoder(input_ids, attention_mask).last_hidden_state))

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None, **unused: Any
    ) -> dict[str, Tensor | None]:
        """The whole sequence each time: there is nothing to cache."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}


class TabularScorer(nn.Module):
    """A scalar per state, behind the interface of a sequence classifier."""

    base_model_prefix = "decoder"

    def __init__(self, child: Tensor, scalars: Tensor):
        super().__init__()
        self.decoder = TabularDecoder(child)
        self.score = nn.Linear(len(child), 1, bias=False)
        self.score.weight.data.copy_(scalars)


@dataclass
class Toy:
    """A trainer on a problem that can be enumerated."""

    trainer: PPOTrainer
    problem: Problem

    @property
    def policy(self) -> nn.Module:
        return self.trainer.policy.module.lm

    def batch(self) -> PromptBatch:
        """The prompts of the trainer's next iteration."""
        size = self.trainer.config.rollout_batch_size
        prompts = PromptSet(self.problem.prompts, [text(p) for p in self.problem.prompts], {})
        return prompts.shuffled(self.trainer.seed, self.trainer.finished * size, size)

    def run(self, steps: int) -> list[Step]:
        return [self.trainer.step(self.batch()) for _ in range(steps)]

    def exact(self) -> Exact:
        config = self.trainer.config
        return exact(self.problem, self.policy, self.trainer.reference.lm, config.kl_coef, config.temperature)


def engine(module: nn.Module, learning_rate: float, config: PPOConfig, steps: int) -> TorchEngine:
    """AdamW on the config's schedule over `steps` iterations."""
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=learning_rate, eps=config.adam_eps, weight_decay=config.weight_decay
    )
    updates = steps * config.optimizer_steps // config.steps
    return TorchEngine(
        module, optimizer, SCHEDULES[config.lr_schedule](updates, config.warmup_steps), config.max_grad_norm
    )


def assemble(problem: Problem, lm: nn.Module, classifier: nn.Module, config: PPOConfig, seed: int) -> Toy:
    """The product's trainer, built from public parts; demonstrations for PTX end every prompt with `a`."""
    reference = PolicyModel(copy.deepcopy(lm), config.temperature).eval().requires_grad_(False)
    policy = PolicyModel(lm, config.temperature).eval()
    moments = RunningMoments() if config.score_normalisation == "running" else None
    adaptive = config.kl_controller == "adaptive"
    demonstrations = [Rendered(p, [1, STOP]) for p in problem.prompts]
    ptx = PretrainingMix(
        demonstrations,
        batch_size=config.ptx_batch_size,
        coef=config.ptx_coef,
        seed=seed,
        pad_id=STOP,
        compute="float32",
    )
    trainer = PPOTrainer(
        config=config,
        policy=engine(policy, config.learning_rate, config, config.steps - config.critic_warmup_steps),
        value=engine(
            ScoreModel(classifier).eval(), config.value_learning_rate or config.learning_rate, config, config.steps
        ),
        reference=reference,
        reward=problem.reward(),
        score_rule=ScoreRule(config.missing_eos, config.reward_clip, moments),
        kl=AdaptiveKL(config.kl_coef, config.kl_target, config.kl_horizon) if adaptive else FixedKL(config.kl_coef),
        sampler=Sampler(
            stop_ids=[STOP],
            pad_id=STOP,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=seed,
        ),
        decode=decode,
        trunk=NoTrunk(),
        seed=seed,
        ptx=ptx if config.ptx_coef else None,
        ema=EMA(lm, config.ema_decay) if config.ema_decay else None,
    )
    return Toy(trainer, problem)


TABULAR = {
    "steps": 150, "rollout_batch_size": 512, "minibatch_size": 128, "microbatch_size": 128, "max_new_tokens": 3,
    "learning_rate": 0.05, "kl_coef": 0.3, "missing_eos": {"mode": "off"},
}  # fmt: skip


def tabular_trainer(seed: int, scores: Callable[[Tensor], Tensor] = lambda normal: normal, **config: Any) -> Toy:
    """Four actions, three tokens, two prompts, 40 completions of each; `scores` transforms N(0, 1) draws [P, N]."""
    generator = torch.Generator().manual_seed(seed)
    completions = every_completion(actions=4, width=3)
    draws = torch.randn(2, len(completions), generator=generator, dtype=torch.float64)
    problem = Problem([[4], [5]], completions, scores(draws))
    child = trie(problem, vocabulary=6)
    lm = TabularPolicy(child, 0.5 * torch.randn(len(child), 4, generator=generator)).eval()
    critic = TabularScorer(child, 0.5 * torch.randn(1, len(child), generator=generator))
    return assemble(problem, lm, critic, PPOConfig(**TABULAR | config), seed)


GPT2 = {
    "steps": 60, "rollout_batch_size": 512, "minibatch_size": 256, "microbatch_size": 256, "max_new_tokens": 3,
    "learning_rate": 3e-3, "kl_coef": 0.5, "missing_eos": {"mode": "off"},
}  # fmt: skip


def gpt2_trainer(problem: Problem, vocabulary: int, seed: int, **config: Any) -> Toy:
    """One layer of width 32, and a value model with weights of its own; PAD is STOP."""
    torch.manual_seed(seed)
    shape = GPT2Config(
        vocab_size=vocabulary, n_positions=16, n_embd=32, n_layer=1, n_head=4, num_labels=1,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=STOP, eos_token_id=STOP, pad_token_id=STOP,
    )  # fmt: skip
    lm, critic = GPT2LMHeadModel(shape).eval(), GPT2ForSequenceClassification(shape).eval()
    return assemble(problem, lm, critic, PPOConfig(**GPT2 | config), seed)


PROMPTS = [[3], [1, 4], [2, 2, 5], [5, 1, 3, 4]]  # of four lengths, so that three of them are left-padded


def unstructured(actions: int, width: int, seed: int) -> Problem:
    """Scores N(0, 1), each completion of each prompt its own."""
    completions = every_completion(actions, width)
    generator = torch.Generator().manual_seed(100 + seed)
    return Problem(PROMPTS, completions, torch.randn(4, len(completions), generator=generator, dtype=torch.float64))


def structured(actions: int, width: int, seed: int) -> Problem:
    """Scores that a network can generalise: a weight per token, a price per length, one favourite token per prompt."""
    completions = every_completion(actions, width)
    weights = torch.randn(actions, generator=torch.Generator().manual_seed(100 + seed), dtype=torch.float64)
    rows = [
        [float(weights[c].sum()) * 0.5 - 0.2 * len(c) + 0.5 * c.count(prompt[-1]) for c in completions]
        for prompt in PROMPTS
    ]
    return Problem(PROMPTS, completions, torch.tensor(rows, dtype=torch.float64))
