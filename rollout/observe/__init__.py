"""Where an engine stands, in numbers.

stats      counts of turns, tokens, routes, fallbacks and lags, added up over processes
outcomes   rewards, metrics, pass@k
prometheus the same for Prometheus, when it is scraped
families   the names and labels that it has there
"""
