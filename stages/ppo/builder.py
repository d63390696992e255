"""Makes every object of the PPO stage, once."""

from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from reward.config import RewardTerm
from stages.base import InputError
from stages.data import read_demonstrations, read_prompts
from stages.engine import SCHEDULES, TorchEngine, TorchEngines
from stages.models.config import NO_FROZEN_LAYERS, ModelConfig, TrunkConfig
from stages.models.heads import PolicyModel, ScoreModel
from stages.models.load import load_tokenizer, neutral_generation_config, source_of, stop_ids
from stages.models.precision import device
from stages.models.publish import is_adapter, publish
from stages.models.roles import Roles, trainable
from stages.models.trunk import FrozenTrunk, NoTrunk, shares_layers, unwrapped
from stages.ppo.config import PPOConfig
from stages.ppo.ema import EMA
from stages.ppo.kl import AdaptiveKL, FixedKL
from stages.ppo.prompts import PromptSet, require_short
from stages.ppo.ptx import PretrainingMix
from stages.ppo.reward_models import RewardModels
from stages.ppo.rewards import RewardBuilder, RewardServices
from stages.ppo.scores import RunningMoments, ScoreRule
from stages.ppo.trainer import PPOTrainer
from stages.render import Renderer
from stages.rollout import Sampler


class PPOBuilder:
    """From the sections of the config and the folders of the parents to a trainer and its parts."""

    def __init__(
        self,
        config: PPOConfig,
        model: ModelConfig,
        terms: list[RewardTerm],
        sft: Path | None,
        reward_model: Path | None,
        seed: int,
        trunk: TrunkConfig = NO_FROZEN_LAYERS,
        services: RewardServices | None = None,
        engines: TorchEngines | None = None,
    ):
        self.config, self.model, self.terms, self.seed = config, model, terms, seed
        self.reward_folder, self.services = reward_model, services or RewardServices()
        self.engines = engines or TorchEngines()
        self.frozen_layers = 0 if self.engines.splits_weights else trunk.frozen_layers
        torch.manual_seed(seed)  # new adapters are random
        self.roles = Roles(
            model, trunk.frozen_layers, self.services.waiting.beat, sharing=not self.engines.splits_weights
        )
        self.roles.trust(sft, reward_model)
        self.start = self.roles.adaptable(source_of(sft or model.path), config.tuning)
        self.tokenizer = load_tokenizer(source_of(sft or model.path), model.trust_remote_code)
        self.renderer = Renderer(self.tokenizer)

    @cached_property
    def policy_lm(self) -> nn.Module:
        """The model that is trained; it starts as the reference."""
        return self.neutral(self.roles.policy(self.start, self.config.tuning))

    @cached_property
    def reference_lm(self) -> nn.Module:
        """The frozen SFT model."""
        return self.neutral(self.roles.reference(self.start))

    @cached_property
    def stops(self) -> tuple[int, ...]:
        return stop_ids(self.roles.frozen_base(self.start.base), self.tokenizer)

    def neutral(self, lm: nn.Module) -> nn.Module:
        """The model on its device, sampling from its full softmax whatever its folder says."""
        unwrapped(lm).generation_config = neutral_generation_config(self.stops, self.tokenizer)
        return lm.to(device())

    def trainer(self, demonstrations: Path | None) -> PPOTrainer:
        """The trainer with all its parts."""
        config = self.config
        reward = self.rewards.mixture
        value = self.value()
        if config.gradient_checkpointing:
            for trained in (self.policy_lm, value.classifier):
                unwrapped(trained).gradient_checkpointing_enable({"use_reentrant": False})
        return PPOTrainer(
            config=config,
            policy=self.engine(
                self.policy(self.policy_lm), config.learning_rate, config.steps - config.critic_warmup_steps
            ),
            value=self.engine(value, config.value_learning_rate or config.learning_rate, config.steps),
            reference=self.engines.frozen(self.policy(self.reference_lm).requires_grad_(False)),
            reward=reward,
            score_rule=ScoreRule(
                config.missing_eos,
                config.reward_clip,
                RunningMoments() if config.score_normalisation == "running" else None,
            ),
            kl=AdaptiveKL(config.kl_coef, config.kl_target, config.kl_horizon)
            if config.kl_controller == "adaptive"
            else FixedKL(config.kl_coef),
            sampler=self.sampler(self.seed),
            decode=self.renderer.decode,
            trunk=self.trunk(self.policy_lm, [m.classifier for m in (value, *self.rewards.scorers)]),
            seed=self.seed,
            world=self.engines.world,
            ptx=self.ptx(demonstrations) if config.ptx_coef else None,
            ema=EMA(self.policy_lm, config.ema_decay) if config.ema_decay else None,
        )

    def policy(self, lm: nn.Module) -> PolicyModel:
        return PolicyModel(lm, self.config.temperature, self.model.compute).eval()

    def sampler(self, seed: int) -> Sampler:
        return Sampler(
            stop_ids=self.stops,
            pad_id=self.tokenizer.pad_token_id,
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            seed=seed,
            compute=self.model.compute,
            in_step=self.engines.splits_weights,
        )

    def engine(self, module: nn.Module, learning_rate: float, steps: int) -> TorchEngine:
        config = self.config
        updates = max(1, steps * config.optimizer_steps // config.steps)
        optimizer = torch.optim.AdamW(
            list(trainable(module)),
            lr=learning_rate,
            eps=config.adam_eps,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.999),
        )
        schedule = SCHEDULES[config.lr_schedule](updates, config.warmup_steps)
        return self.engines.trained(module, optimizer, schedule, config.max_grad_norm)

    @cached_property
    def rewards(self) -> RewardBuilder:
        """The reward and its parts."""
        spread, centring = self.engines.frozen, self.services.centring
        models = RewardModels(self.reward_folder, self.model, self.roles, self.tokenizer, spread, centring)
        return RewardBuilder(self.terms, models, self.services.waiting)

    def value(self) -> ScoreModel:
        """A value model that starts as the (centred) reward model, or at 0 without one that reads the policy's ids."""
        copied = self.rewards.value_model(self.config.tuning)
        if copied is not None:
            return copied
        head = self.roles.value_from_policy(self.start, self.config.tuning, self.tokenizer.pad_token_id)
        return ScoreModel(head.to(device()), compute=self.model.compute).eval()

    def trunk(self, policy: nn.Module, others: list[nn.Module]) -> NoTrunk:
        """A frozen trunk for the reference, the policy, and those others that share the reference's layers.

        Raises InputError TUNE04 when the policy does not.
        """
        if not self.frozen_layers:
            return NoTrunk()
        trunk = FrozenTrunk(self.frozen_layers)
        models = dict.fromkeys((self.reference_lm, policy, *others))
        sharing = [m for m in models if shares_layers(m, self.reference_lm, self.frozen_layers)]
        if policy not in sharing:
            raise InputError(
                "TUNE04",
                f"the policy changes the first {self.frozen_layers} layers, which trunk.frozen_layers keeps",
                fix="trunk.frozen_layers: 0 for this run, or train sft again with it",
            )
        for model in sharing:
            trunk.attach(model)
        return trunk

    def ptx(self, demonstrations: Path | None) -> PretrainingMix:
        if demonstrations is None:
            raise InputError(
                "DATA06", "ppo.ptx_coef needs demonstrations", fix="set data.demonstrations, or ptx_coef: 0"
            )
        rows = [self.renderer.demonstration(r) for r in read_demonstrations(demonstrations)]
        return PretrainingMix(
            rows,
            batch_size=self.config.ptx_batch_size,
            coef=self.config.ptx_coef,
            seed=self.seed,
            pad_id=self.tokenizer.pad_token_id,
            compute=self.model.compute,
        )

    def prompts(self, path: Path) -> PromptSet:
        """Tokenised prompts. Raises InputError LEN02 for prompts longer than max_prompt_tokens."""
        rows = read_prompts(path)
        ids = [self.renderer.prompt(r["prompt"]) for r in rows]
        require_short(ids, self.config, path)
        columns = {name: [r[name] for r in rows] for name in rows[0] if name != "prompt"}
        return PromptSet(ids, [r["prompt"] for r in rows], columns)

    def publish(self, folder: Path) -> bool:
        """Write the policy for plain transformers (+ peft); whether it is an adapter."""
        publish(self.policy_lm, self.tokenizer, folder, self.roles)
        neutral_generation_config(self.stops, self.tokenizer).save_pretrained(folder)
        return is_adapter(folder)
