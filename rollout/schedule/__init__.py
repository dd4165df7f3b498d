"""Who plays next, and where what was played goes.

scheduler     decides: pure
stream        one stream of groups, and the seven ways in which it ends
playing       a rollout under way
hand_over     the caller's `on_rollout`
streams       all of an engine's, which share its slots
submissions   tasks that are submitted one by one
task_source   tasks, drawn without blocking
held          rollouts whose agents their caller runs
group_reward  a trainer's rewards for whole groups
concurrency   how many at once, where that is `auto`
"""
