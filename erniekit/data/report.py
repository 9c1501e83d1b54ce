"""What happened to the rows of a data set: nothing is dropped without being counted here."""

from dataclasses import dataclass, field

import numpy as np

_LISTED = 20


@dataclass
class DataReport:
    """Counts over the rows that were read, each row counted once."""

    rows: int = 0
    samples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    empty: int = 0
    untrained: int = 0
    truncated: int = 0
    too_long: int = 0
    undecided: int = 0
    wrong_calls: int = 0
    wrong_call: str = ""
    bad: int = 0
    bad_rows: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    @property
    def trained_share(self) -> float:
        """Share of the tokens that are trained on."""
        return self.trained_tokens / self.tokens if self.tokens else 0.0

    @property
    def typical_length(self) -> float:
        """Tokens of the sample that a token belongs to, on average over tokens."""
        return sum(length * length for length in self.lengths) / max(1, sum(self.lengths))

    def note_bad(self, message: str) -> None:
        """Count a row that is no row; the first ones are listed."""
        self.bad += 1
        if len(self.bad_rows) < _LISTED:
            self.bad_rows.append(message)

    def lines(self) -> list[str]:
        """The summary for people."""
        lines = [
            f"{self.rows} rows, {self.samples} samples, {self.tokens} tokens, "
            f"{self.trained_share:.0%} of them trained on"
        ]
        if self.lengths:
            low, middle, high = (int(v) for v in np.percentile(self.lengths, [5, 50, 95]))
            lines.append(
                f"tokens a sample: 5 % {low}, median {middle}, 95 % {high}, longest {max(self.lengths)}"
            )
        if self.truncated:
            lines.append(f"{self.truncated} samples were cut at max_seq_len")
        if self.too_long:
            lines.append(f"{self.too_long} samples that do not fit into max_seq_len were left out")
        if self.wrong_calls:
            lines.append(
                f"{self.wrong_calls} tool calls do not fit the definitions of their tools, the first: "
                f"{self.wrong_call}"
            )
        if self.undecided:
            lines.append(
                f"{self.undecided} pairs that prefer neither answer (equal answers or scores) were left out"
            )
        if self.untrained:
            lines.append(f"{self.untrained} samples without a trained token were left out")
        if self.empty:
            lines.append(f"{self.empty} rows are too short to predict a token in them")
        if self.bad:
            lines.append(f"{self.bad} bad rows were skipped (skip_bad_rows: true):")
            lines += [f"  {message}" for message in self.bad_rows]
            if self.bad > len(self.bad_rows):
                lines.append(f"  and {self.bad - len(self.bad_rows)} more")
        return lines
