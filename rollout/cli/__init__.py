"""What a person types, and sees.

app            all commands
run_command    `rollout run` and its options
server_commands  `rollout probe`, `bench`, `serve`, `model`
proxy_command  `rollout proxy`: the recorder
folder_commands  `rollout export`, `show`, `envs`
new_command    `rollout new`
new_package    what it makes, from `templates`
options        what several of them take
command        what every command does around its work: output, signals, exit status
run            `rollout run`: from settings to a finished folder
preflight      what an environment looks at once, before a run plays anything
resume         `--resume`: what is missing of the same tasks
show           `rollout show`: rollouts as conversations
summary        the table and summary.json
progress       the live view
logs           events for the terminal and events.log
ends           signals, and the end of the process
failure_limit  `--fail-fast`, `--max-failures`
metrics        `--metrics-port`: numbers for Prometheus while a command plays
loggers        `--log`: found before anything is played, made once the servers are there
"""

from rollout.moved import forward

forward("rollout.cli")
