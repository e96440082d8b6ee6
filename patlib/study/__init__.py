"""The study: grids of runs, the records behind them, statistics, and the paper's own numbers."""
