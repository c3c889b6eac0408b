"""What language models are asked: llama-bench's figures, and questions as a chat."""

from collections.abc import Callable
from pathlib import Path

from harness.process import UsageError, UserError

# llama-bench's standard prompt and generation, in tokens, and how it calls these two figures.
PP_TOKENS, TG_TOKENS = 512, 128
PROMPT, GENERATION = f"pp{PP_TOKENS}", f"tg{TG_TOKENS}"
# The column of a figure's speed.
SPEED_OF = {PROMPT: "prompt_tokens_per_second", GENERATION: "tokens_per_second"}
WARM_UP_TOKENS = 16  # of a short answer that is not counted
SAMPLING = {"top_k": 40, "top_p": 0.95, "min_p": 0.05}  # llama.cpp's own defaults
LLAMA2_PROMPT = "[INST] {} [/INST]"  # of Llama 2, whose files are older than chat templates

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


ALL_IN_ONE = LLAMA2_PROMPT.format(" ".join(QUESTIONS))  # the words that a twin knows


def figures_of(depths: list[int], parallel: list[int]) -> list[str]:
    """llama-bench's figures with so many tokens in the cache, and of so many sequences at once.

    `pp512`, `tg128`; `pp512@d4096` after 4096 tokens; `pp512@p4` for 4 prompts in one batch.
    """
    ends = ["" if depth == 0 else f"@d{depth}" for depth in depths]
    ends += ["" if count == 1 else f"@p{count}" for count in parallel]
    return [figure + end for end in dict.fromkeys(ends) for figure in SPEED_OF]


def figure_parts(question: str) -> tuple[str, int, int] | None:
    """Figure, depth and sequences in parallel of `tg128@d4096`; None of a question."""
    figure, _, end = question.partition("@")
    if figure not in SPEED_OF:
        return None
    number = int(end[1:] or 0)
    return figure, number if end.startswith("d") else 0, number if end.startswith("p") else 1


def questions_to_ask(file: Path | None, number: int | str) -> list[str]:
    """The first `number` questions, or `all`, of a file with one a line, or of the twenty.

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
    number = len(questions) if number == "all" else number
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
