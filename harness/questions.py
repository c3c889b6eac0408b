"""What the LLM experiments ask: twenty everyday questions, or those of a file, as a chat."""

from collections.abc import Callable
from pathlib import Path

from harness.process import UsageError, UserError

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


def in_chat_format(
    render: Callable[[list[dict]], str], model: Path | str, question: str, system_prompt: str = ""
) -> str:
    """The question as the chat template of a model words it.

    Some templates take what is said as text, others as a list of typed parts. One that is given the
    wrong kind leaves it out, most often without a word, so the prompt shows which kind is right.

    Args:
        render: makes the prompt of messages, as the template does.
        model: its file or folder, for the errors.

    Raises:
        UserError: the template refuses such a conversation, is broken, or leaves out what is said.
    """
    from jinja2 import TemplateError

    said = {"the system prompt": system_prompt, "the question": question}
    problem = None
    for content_of in (str, as_parts):
        messages = [{"role": "system", "content": content_of(system_prompt)}] * bool(system_prompt)
        messages.append({"role": "user", "content": content_of(question)})
        try:
            prompt = render(messages)
        # A template is a program, and fails as one; its own `raise_exception` is a ValueError here
        # and a TemplateError there.
        except (TemplateError, ValueError, TypeError, LookupError, ArithmeticError) as error:
            problem = problem or f"refuses it: {' '.join(str(error).split())}"
            continue
        missing = [name for name, text in said.items() if text.strip() not in prompt]
        # A template that wants text writes the list itself out.
        if not missing and str(*as_parts(question)) not in prompt:
            return prompt
        problem = problem or f"leaves out {' and '.join(missing)}"
    flag = "--system_prompt: " if system_prompt else ""
    raise UserError(f"{flag}{model}: the model's chat template {problem}")


def as_parts(content: str) -> list[dict]:
    return [{"type": "text", "text": content}]
