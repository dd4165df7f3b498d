"""Where an engine stands, in numbers.

stats      counts of turns, tokens, routes, fallbacks and lags, added up over processes
outcomes   rewards, metrics, pass@k
"""
