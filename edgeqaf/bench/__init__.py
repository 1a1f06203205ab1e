"""The bench that compares tuning methods: equal batches, equal steps, scored in PyTorch and from the artifacts.

cell.py        one run and its key: model, task, grid, method, rates, seed, steps
contenders.py  the methods that are compared, under the names the tables give them
rates.py       their learning rates, and what was tried
plans.py       which cells there are, and in which order
places.py      where models, data and results are
task.py        what a task is; its rows as training batches, held-out rows and questions
tasks/         one file per task
tune.py        one training run (torch)
measure.py     one cell, from base to artifact, and its figures (torch)
subjects.py    whom it asks: a model in memory, an artifact in a runtime
pool.py        child processes that take cells one by one
runner.py      the cells that are not done yet, each computed once
store.py       results on disk
summary.py     results over seeds
goals.py       what the methods are meant to reach, judged
tables.py, figures.py, pages.py   the report
"""
