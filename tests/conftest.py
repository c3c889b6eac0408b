import pytest
import torchvision  # noqa: F401 - after TensorFlow, whichever test comes first, it would abort
from hub import Hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A loopback Hub, and the environment in which scripts started by the test use it."""
    server = Hub()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    yield server
    server.close()
