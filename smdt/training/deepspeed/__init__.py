"""DeepSpeed: engines, optimizers, patches. The only place that imports it."""
