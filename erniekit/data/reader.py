"""From a row to samples: parse, render, tokenise, fit to max_seq_len."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erniekit.data.formats import Conversation, RowError, parse
from erniekit.data.pair_formats import NoPreference, Pair, parse_pair
from erniekit.data.pairs import PairBuilder
from erniekit.data.render import render_conversation, tokenise, written_out
from erniekit.data.report import DataReport
from erniekit.data.rows import BadRow
from erniekit.data.sample import PairSample, Sample, make_sample
from erniekit.data.template import ChatTemplate, load_template
from erniekit.data.tokenizer import Tokenizer, load_tokenizer
from erniekit.data.tool_calls import check_call
from erniekit.data.vision_tokens import VisionTokens
from erniekit.errors import DataError
from erniekit.log import logger

# The keyword arguments of `open_reader` that are the same for every reader of a configuration.
READER_KEYS = (
    *("chat_template", "max_seq_len", "overlong", "skip_bad_rows", "use_template"),
    *("train_on", "mask_thinking", "encode_one_turn", "ignore_eos_token"),
)


def open_tokenizer(folder: Path, *, tokenizer: str | None) -> Tokenizer:
    """The tokenizer of a model folder, or the one of the folder that `tokenizer` names."""
    return load_tokenizer(Path(tokenizer) if tokenizer else folder)


def open_reader(
    folder: Path,
    stage: str,
    vision: VisionTokens | None = None,
    *,
    tokenizer: str | None,
    chat_template: str | None,
    max_seq_len: int,
    overlong: str,
    skip_bad_rows: bool,
    use_template: bool,
    train_on: str,
    mask_thinking: bool,
    encode_one_turn: bool,
    ignore_eos_token: bool,
) -> "SampleReader":
    """The reader of a model folder's tokenizer and template; `vision` are the model's vision tokens."""
    opened = open_tokenizer(folder, tokenizer=tokenizer)
    return SampleReader(
        opened,
        load_template(opened, chat_template=chat_template),
        stage,
        vision,
        max_seq_len=max_seq_len,
        overlong=overlong,
        skip_bad_rows=skip_bad_rows,
        use_template=use_template,
        train_on=train_on,
        mask_thinking=mask_thinking,
        encode_one_turn=encode_one_turn,
        ignore_eos_token=ignore_eos_token,
    )


class SampleReader:
    """Turns rows into samples, the same way every time it sees a row."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        stage: str,
        vision: VisionTokens | None = None,
        *,
        max_seq_len: int,
        overlong: str,
        skip_bad_rows: bool,
        use_template: bool,
        train_on: str = "all_turns",
        mask_thinking: bool = False,
        encode_one_turn: bool = False,
        ignore_eos_token: bool = False,
    ) -> None:
        """Args:
            template: needed by conversations; PT works without.
            vision: tokens that are no text.
            max_seq_len: tokens of a sample at most.
            overlong: `truncate` (cut the end), `drop`, or `error`.
            use_template: False trains conversations as plain text, their turns joined by newlines.
            train_on: `all_turns`, or `last_turn`: the last answer of a conversation only.
            mask_thinking: do not train on the reasoning before an answer.
            encode_one_turn: a sample for each answer, as it was when it was given.
            ignore_eos_token: leave the last token of an answer out of its log-probability (pairs).

        Raises:
            DataError: conversations are to be read and there is no template.
        """
        if stage != "PT" and use_template and template is None:
            raise DataError(
                f"{tokenizer.folder} has no chat template, so conversations cannot be rendered: set "
                "chat_template "
                "to ernie45 or to the path of a .jinja file, or use_template: false"
            )
        self.tokenizer, self.template = tokenizer, template
        self.vision = vision or VisionTokens()
        self.stage, self.max_seq_len, self.skip_bad_rows = stage, max_seq_len, skip_bad_rows
        self._overlong, self._use_template = overlong, use_template
        self._last_only, self._mask_thinking = train_on == "last_turn", mask_thinking
        self._one_turn = encode_one_turn
        self._pairs = PairBuilder(
            tokenizer,
            template if use_template else None,
            max_seq_len=max_seq_len,
            ignore_eos_token=ignore_eos_token,
        )
        self._warned: set[str] = set()

    def read(self, kind: str, row: Any, origin: str, report: DataReport | None = None) -> list[Sample]:
        """The samples of a row; none when it is bad and bad rows are skipped.

        Raises:
            DataError: `file:line: reason`.
        """
        try:
            if isinstance(row, BadRow):
                raise RowError(row.reason)
            samples = [self.vision.unpredicted(s) for s in self._samples(kind, row, origin, report)]
        except NoPreference:
            if report is not None:
                report.rows += 1
                report.undecided += 1
            return []
        except UnicodeEncodeError as error:
            half = f"U+{ord(error.object[error.start]):04X}"
            return self._bad(f"{origin}: holds {half}, half of a pair and no character", report, error)
        except (RowError, DataError) as error:
            return self._bad(f"{origin}: {error}{self._other_stage(row)}", report, error)
        kept = [fitted for sample in samples if (fitted := self._fit(sample, report)) is not None]
        if report is not None:
            report.rows += 1
            report.empty += not samples
            report.samples += len(kept)
            report.tokens += sum(map(len, kept))
            report.trained_tokens += sum(sample.num_trained for sample in kept)
            report.lengths += [len(sample) for sample in kept]
        return kept

    def _samples(self, kind: str, row: Any, origin: str, report: DataReport | None) -> list[Sample]:
        if self.stage == "DPO":
            pair = parse_pair(kind, row)
            _note_wrong_calls([*pair.prompt, *pair.chosen], pair.tools, origin, report)
            return [self._pair(pair, origin)]
        parsed = parse(kind, row)
        if isinstance(parsed, str):
            return self._text(parsed, origin)
        _note_wrong_calls(parsed.messages, parsed.tools, origin, report)
        return self._chat(parsed, origin)

    def _other_stage(self, row: Any) -> str:
        """A hint where a bad row is one of another stage's."""
        columns = row.keys() if isinstance(row, Mapping) else set()
        pair = {"chosen", "rejected"} <= columns or {"response", "sort"} <= columns
        if self.stage == "DPO":
            return "" if pair else "; it is no pair of answers: rows with one answer are for stage: SFT"
        return "; it is a pair of answers, which stage: DPO trains on" if pair else ""

    def _bad(self, message: str, report: DataReport | None, error: Exception) -> list[Sample]:
        """A bad row is counted or, unless bad rows are skipped, an error."""
        if not self.skip_bad_rows:
            hint = " (skip_bad_rows: true counts and lists such rows instead)"
            raise DataError(message + hint) from error
        if report is not None:
            report.rows += 1
            report.note_bad(message)
        return []

    def _chat(self, conversation: Conversation, origin: str) -> list[Sample]:
        if not self._use_template or self.template is None:
            return self._text("\n".join(str(m["content"]) for m in conversation.messages), origin)
        messages = self._spelt(conversation.messages, conversation.tools, origin)
        trained = conversation.trained
        if self._last_only:
            trained = [False] * (len(trained) - 1) + trained[-1:]
        rendered = render_conversation(
            self.template,
            messages,
            tools=conversation.tools,
            trained=trained,
            special_texts=self.tokenizer.special_texts,
            mask_thinking=self._mask_thinking,
            apart=self._one_turn,
        )
        for part in rendered:
            for turn in part.turns:
                if turn.end in part.text[turn.start : turn.stop - len(turn.end)]:
                    self._warn_once(
                        f"{origin}: an answer holds the text {turn.end!r}, which is the token that ends an "
                        "answer: the model learns to stop there"
                    )
        return [make_sample(*tokenise(part, self.tokenizer), origin) for part in rendered]

    def _pair(self, pair: Pair, origin: str) -> PairSample:
        if self._use_template and self.template is not None:
            sides = [pair.prompt, pair.chosen, pair.rejected]
            prompt, chosen, rejected = (self._spelt(side, pair.tools, origin) for side in sides)
            pair = Pair(prompt, chosen, rejected, pair.score_difference, pair.tools)
        return self._pairs.build(pair, origin)

    def _spelt(
        self, messages: list[dict[str, Any]], tools: list[Any] | None, origin: str
    ) -> list[dict[str, Any]]:
        """Messages as the template can render them, with a warning where it cannot render something."""
        assert self.template is not None
        written, changed = written_out(self.template, messages)
        if changed:
            self._warn_once(
                f"{origin}: the chat template of {self.template.name} does not render tool calls or results; "
                "they are written out as <tool_call> in answers and <tool_response> in questions"
            )
        thinks = any(message.get("reasoning_content") for message in messages)
        if thinks and not self.template.renders_reasoning:
            self._warn_once(
                f"{origin}: the chat template of {self.template.name} does not render reasoning: the model "
                "will not learn to think (chat_template: ernie45-thinking does)"
            )
        if tools and not self.template.renders_tools:
            self._warn_once(
                f"{origin}: the chat template of {self.template.name} does not render `tools`: the model "
                "will not see the definitions of the tools"
            )
        return written

    def _warn_once(self, message: str) -> None:
        key = message.split(": ", 1)[1]
        if key not in self._warned:
            self._warned.add(key)
            logger.warning(message)

    def _text(self, text: str, origin: str) -> list[Sample]:
        """A text in pieces of max_seq_len; the last token of a piece is the first of the next one."""
        ids = self.tokenizer.encode(text)
        if self.tokenizer.eos_id is not None:
            ids.append(self.tokenizer.eos_id)
        step = self.max_seq_len
        pieces = [ids[start : start + step + 1] for start in range(0, max(1, len(ids) - 1), step)]
        return [make_sample(piece, piece, origin) for piece in pieces if len(piece) > 1]

    def _fit(self, sample: Sample, report: DataReport | None) -> Sample | None:
        if len(sample) > self.max_seq_len:
            if self._overlong == "error":
                raise DataError(
                    f"{sample.origin}: {len(sample)} tokens, more than max_seq_len: {self.max_seq_len} "
                    "(overlong: truncate cuts such samples, overlong: drop leaves them out)"
                )
            if self._overlong == "drop":
                self._note_too_long(report)
                return None
            if isinstance(sample, PairSample):
                fitted = self._pairs.fitted(sample)
                if fitted is not None and report is not None:
                    report.truncated += 1
                if fitted is None:
                    self._note_too_long(report)
                return fitted
            sample = Sample(
                sample.input_ids[: self.max_seq_len], sample.labels[: self.max_seq_len], sample.origin
            )
            if report is not None:
                report.truncated += 1
        if not sample.num_trained:
            if report is not None:
                report.untrained += 1
            return None
        return sample

    def _note_too_long(self, report: DataReport | None) -> None:
        if report is not None:
            report.too_long += 1


def _note_wrong_calls(
    messages: list[dict[str, Any]], tools: list[Any] | None, origin: str, report: DataReport | None
) -> None:
    """Count the calls that do not fit the tools of their row; without definitions there is nothing to fit."""
    if not tools or report is None:
        return
    for message in messages:
        for call in message.get("tool_calls") or ():
            wrong = check_call(call["function"]["name"], call["function"]["arguments"], tools)
            if wrong is not None:
                report.wrong_call = report.wrong_call or f"{origin}: {wrong}"
                report.wrong_calls += 1
