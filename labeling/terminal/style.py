"""How the screens look: styles of texts, and the layout in Textual's CSS."""

from rich.style import Style

PLAIN = Style()
BOLD = Style(bold=True)
DIM = Style(dim=True)
FOCUS = Style(reverse=True, bold=True)
GOOD = Style(color="green", bold=True)
BAD = Style(color="red", bold=True)
OPEN = Style(color="yellow")
TROUBLE = Style(reverse=True, color="red", bold=True)

RANKING_CSS = """
RankingScreen { layout: vertical; }
Bar, Question { height: 1; }
Question { border: none; padding: 0; background: ansi_default; color: ansi_default; display: none; }
Question:focus { border: none; background: ansi_default; background-tint: ansi_default 0%; }
#body { height: 1fr; layout: vertical; }
#prompt { height: 6; }
#answers { height: 1fr; }
#question-row { layout: horizontal; height: 1; }
#small { display: none; height: 1fr; }
RankingScreen.-wide #body { layout: horizontal; }
RankingScreen.-wide #prompt { width: 36%; height: 1fr; margin: 0 1 0 0; }
RankingScreen.-wide #answers { width: 1fr; }
RankingScreen.-whole-prompt #prompt { height: 1fr; width: 1fr; }
RankingScreen.-whole-prompt #answers { display: none; }
RankingScreen.-small Bar, RankingScreen.-small #body, RankingScreen.-small Question { display: none; }
RankingScreen.-small #small { display: block; }
"""

INSTRUCTIONS_CSS = """
InstructionsScreen { background: ansi_default; }
InstructionsScreen VerticalScroll { height: 1fr; scrollbar-size: 0 0; padding: 0 1; max-width: 100; }
InstructionsScreen Markdown { background: ansi_default; color: ansi_default; margin: 0; padding: 0; }
InstructionsScreen MarkdownH1, InstructionsScreen MarkdownH2 {
    color: ansi_default; background: ansi_default; content-align: left middle; text-style: bold;
    margin: 1 0 0 0; border: none; padding: 0;
}
InstructionsScreen MarkdownH2 { text-style: underline; }
InstructionsScreen Bar { height: 1; dock: bottom; }
"""
