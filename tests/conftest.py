import pytest
import torchvision  # noqa: F401 - after TensorFlow, whichever test comes first, it would abort
from hub import Hub
from huggingface_hub import constants


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A loopback Hub, and the environment in which scripts started by the test use it."""
    server = Hub()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    # Where an earlier test has loaded the client, it has read the environment already.
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield server
    server.close()
