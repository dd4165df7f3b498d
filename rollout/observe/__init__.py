"""Where an engine stands, in numbers.

stats        counts of turns, tokens, routes, fallbacks and lags, added up over processes
outcomes     rewards, metrics, pass@k
prometheus   the same for Prometheus, when it is scraped
families     the names and labels that it has there
loggers      who is told of groups and stats, and as what numbers
log_thread   a thread for each
secrets      what they say, without keys
spans        rollouts, turns and requests as OpenTelemetry's
exporting    where these go, where nobody has said it
trackers     TensorBoard, W&B, MLflow, Trackio
"""
