"""Measure how reasoning models behave in a serving engine: Accuracy, Service-end and User-end metrics."""
