"""Bundled environments. Others are found by the entry-point group `rollout.envs`, or by path."""
