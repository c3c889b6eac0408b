"""Files of a Hugging Face Hub repository: downloaded once, reused offline."""

from pathlib import Path

import utils


def fetch(repo_id: str, repo_type: str, patterns: list[str], data_dir: Path) -> Path:
    """The folder with the files of a Hub repository that match `patterns`.

    What lies under `data_dir` whole is used without a word to the network; the rest is downloaded
    with a progress bar, and a download that broke off is resumed.

    Args:
        repo_id: such as `ethz/food101`.
        repo_type: `dataset` or `model`.
        patterns: such as `data/train-*.parquet`.

    Raises:
        DataUnreachable: the Hub does not answer, has no such repository, or breaks off.
        UserError: the files cannot be written to `data_dir`.
    """
    from huggingface_hub import hf_hub_url, snapshot_download

    # HTTPError is that of whichever HTTP library this version of the client builds on.
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, XetDownloadError

    def download(local_files_only: bool) -> Path:
        folder = snapshot_download(
            repo_id,
            repo_type=repo_type,
            allow_patterns=patterns,
            cache_dir=data_dir / "hub",
            local_files_only=local_files_only,
        )
        return Path(folder)

    try:
        return download(local_files_only=True)
    except LocalEntryNotFoundError:
        pass
    # Asked first, because the Hub's client retries for minutes.
    utils.require_reachable(hf_hub_url(repo_id, "README.md", repo_type=repo_type))
    try:
        return download(local_files_only=False)
    except (HTTPError, XetDownloadError, OSError) as error:
        # The client's own errors are OSErrors too, but only the system's carry a number.
        if getattr(error, "errno", None):
            raise utils.UserError(
                f"--data_dir={data_dir}: {repo_id} could not be put there ({error.strerror})"
            ) from None
        problem = str(error).partition("\n")[0]
        raise utils.DataUnreachable(f"the download of {repo_id} broke off ({problem})") from None
