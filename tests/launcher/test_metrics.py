from launcher.metrics import LABELS, LauncherMetrics


def test_the_contract_of_names_and_labels():
    metrics = LauncherMetrics("a-run", host="here")
    metrics.restarts.inc()
    metrics.set_hosts({"used": 2, "left_out": 1})
    samples = [sample for metric in metrics.registry.collect() for sample in metric.samples]
    found = {
        (sample.name, sample.labels.get("state")): sample.value
        for sample in samples
        if not sample.name.endswith("_created")
    }
    assert found == {
        ("smdt_launcher_restarts_total", None): 1,
        ("smdt_launcher_hosts", "used"): 2,
        ("smdt_launcher_hosts", "idle"): 0,
        ("smdt_launcher_hosts", "left_out"): 1,
    }
    common = {"run": "a-run", "stage": "launcher", "rank": "0", "host": "here"}
    assert common.keys() == set(LABELS)
    assert all(common.items() <= sample.labels.items() for sample in samples)
