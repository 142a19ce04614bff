"""Reinforcement learning: prompts of problems, rollouts, advantages, micro-batches of rollouts, and
the log of what was sampled. The losses are in `training.policy_losses`, the stages in `stages.ppo` and
`stages.grpo`.

May import: every package that stands below it in the contract `house` of pyproject.toml.
"""
