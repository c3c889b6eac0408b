"""What the LLM experiments ask: twenty everyday questions, or those of a file."""

from pathlib import Path

from harness.process import UsageError

QUESTIONS = [
    "How does a refrigerator keep food cold? Explain it step by step.",
    "How does a bicycle stay upright while it is moving? Reason step by step.",
    "How does a microwave oven heat a cup of soup? Explain it step by step.",
    "How does soap remove grease from a dirty plate? Think it through step by step.",
    "How does a key open the lock of a front door? Explain it step by step.",
    "How does yeast make the dough of a bread rise? Reason step by step.",
    "How does a toilet flush and then fill up again? Explain it step by step.",
    "How does a sailing boat travel against the wind? Think it through step by step.",
    "How does a pair of glasses correct blurry sight? Explain it step by step.",
    "How does a vaccine prepare the body for a disease? Reason step by step.",
    "How does a rainbow appear after a summer shower? Explain it step by step.",
    "How does a letter find its way to another country? Think it through step by step.",
    "How does a touch screen notice where a finger is? Explain it step by step.",
    "How does an aeroplane stay up in the air? Reason step by step.",
    "How does a pressure cooker shorten cooking time? Explain it step by step.",
    "How does a bank card pay for goods in a shop? Think it through step by step.",
    "How does a tree carry water up to its leaves? Explain it step by step.",
    "How does a thermos flask keep tea hot for hours? Reason step by step.",
    "How does a lift know which floor to visit next? Explain it step by step.",
    "How does a battery store energy for a torch? Think it through step by step.",
]


def questions_to_ask(file: Path | None, number: int | None) -> list[str]:
    """The first `number` questions (None: all) of a file with one a line, or of the twenty.

    Raises:
        UsageError: the file cannot be read, or there are fewer questions.
    """
    questions = QUESTIONS
    if file:
        try:
            text = file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeError) as error:
            problem = getattr(error, "strerror", None) or "it is no UTF-8 text"
            raise UsageError(f"--questions_file={file}: {problem}") from None
        questions = list(dict.fromkeys(filter(None, map(str.strip, text.splitlines()))))
    number = number or len(questions)
    if not 1 <= number <= len(questions):
        raise UsageError(f"--num_questions={number}: there are {len(questions)} questions")
    return questions[:number]
