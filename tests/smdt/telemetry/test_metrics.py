from smdt.telemetry.metrics import LABELS, TrainingMetrics

# The contract of docs/metrics.md, and what we export beyond it.
CONTRACT = {
    *("smdt_samples_total", "smdt_steps_total", "smdt_step_seconds_count"),
    *("smdt_data_wait_seconds_total", "smdt_compute_seconds_total"),
    *("smdt_collective_wait_seconds_total", "smdt_last_step_timestamp_seconds", "smdt_epoch"),
    *("smdt_loss", "smdt_learning_rate", "smdt_gradient_norm", "smdt_loss_scale"),
    *("smdt_skipped_steps_total", "smdt_read_bytes_total", "smdt_read_seconds_count"),
    *("smdt_quarantined_samples_total", "smdt_checkpoint_seconds", "smdt_checkpoint_bytes"),
    *("smdt_checkpoint_last_success_timestamp_seconds", "smdt_recall"),
    *("smdt_image_quality", "smdt_model_flops_utilization", "smdt_device_memory_bytes"),
    *("smdt_run_info", "smdt_step", "smdt_steps_planned", "smdt_nonfinite_steps_total"),
}


def test_every_name_of_the_contract_is_exported_with_its_labels():
    metrics = TrainingMetrics("a-run", "retrieval", 2, host="here")
    for engine in (metrics.learning_rate, metrics.gradient_norm, metrics.loss_scale):
        engine("two_tower").set(1)
    metrics.loss("loss").set(1)
    metrics.skipped_steps("two_tower").inc()
    metrics.quarantined_samples("checksum").inc()
    metrics.recall("val", "1%").set(1)
    metrics.image_quality("SSIM").set(1)
    for gauge in (
        *(metrics.step, metrics.steps_planned, metrics.epoch, metrics.model_flops_utilization),
        *(metrics.last_step_timestamp_seconds, metrics.checkpoint_seconds),
        *(metrics.checkpoint_bytes, metrics.checkpoint_last_success_timestamp_seconds),
    ):
        gauge.set(1)
    metrics.read_device_memory({"resident": lambda: 1.0})
    metrics.run_info({"precision": "bf16"})
    samples = [sample for metric in metrics.registry.collect() for sample in metric.samples]
    assert {sample.name for sample in samples} >= CONTRACT
    common = {"run": "a-run", "stage": "retrieval", "rank": "2", "host": "here"}
    assert common.keys() == set(LABELS)
    assert all(common.items() <= sample.labels.items() for sample in samples)
    assert metrics.labels == common


def test_ranks_share_nothing():
    first, second = (TrainingMetrics("run", "retrieval", rank) for rank in (0, 1))
    first.steps.inc(3)
    assert second.steps._value.get() == 0


def test_what_is_not_known_is_not_exported():
    metrics = TrainingMetrics("run", "retrieval", 0)
    names = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    assert "smdt_checkpoint_last_success_timestamp_seconds" not in names
    assert "smdt_model_flops_utilization" not in names
    assert {"smdt_steps_total", "smdt_nonfinite_steps_total"} <= names
