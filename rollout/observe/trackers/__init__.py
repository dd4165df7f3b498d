"""Loggers for what people track their runs with, each behind the extra of its name.

    tensorboard   event files in a folder, by tensorboardX, without torch
    wandb         Weights & Biases
    mlflow        an MLflow tracking server or database
    trackio       Trackio, local or on a Space

Each can be made in a program, also over a run of the caller's own, and is made by `--log NAME:REST`.
"""
