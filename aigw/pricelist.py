"""What providers ask for their models, in dollars per million tokens: data, and nothing else.

Each list names the page it is from, whose prices it holds and at which hosts they apply; a line of it the names of a
model and a price for each class of tokens that the list's columns name (`-`: none of its own). A line that begins with
`>` is what all tokens of an exchange cost whose prompt, cached tokens included, is longer than so many tokens.

The pages were read by way of genai-prices 0.2.3, a public collection of November 2026; the newest models of OpenAI,
Anthropic, Google, DeepSeek and xAI, and Cohere's, were compared with other copies of what the pages said in October and
November 2026. What could not be confirmed is left out: its cost is unknown then, not wrong. Standard prices, no batch,
flex, priority or fast ones, and no fees for searches and storage. Where a page has two prices and a report of usage
does not tell which one applied, the dearer stands here, so that a budget is not overrun: DeepSeek's peak hours, and
prices that an introductory offer ends with (Gemini 4 Argon on 2026-12-01, Gemini 3.6 to 3.8 Flash on 2027-01-01).
"""

from __future__ import annotations

from typing import Final, NamedTuple

VERSION: Final = "2026-11"  # of the newest list


class PriceList(NamedTuple):
    """`columns` are names of `prices.Price`; `date` is when the page was read, as far as that is known."""

    provider: str
    hosts: tuple[str, ...]
    source: str
    date: str
    columns: str
    lines: str


LISTS: Final = (
    PriceList(
        "OpenAI",
        ("api.openai.com",),
        "https://developers.openai.com/api/docs/pricing",
        "2026-11",
        "input cached cache_write output audio_input audio_output",
        """
        gpt-6.1-sol                2     0.1     2.5   10    -   -
            >272000                4     0.2     5     15    -   -
        gpt-6.1-terra              1     0.05    1.25  5     -   -
            >272000                2     0.1     2.5   7.5   -   -
        gpt-6-astra                10    1       12.5  50    -   -
            >272000                20    2       25    75    -   -
        gpt-6-sol                  2     0.2     2.5   10    -   -
            >272000                4     0.4     5     15    -   -
        gpt-6-luna                 0.1   0.01    0.125 0.5   -   -
            >272000                0.2   0.02    0.25  0.75  -   -
        gpt-5.6-sol,gpt-5.6        4     0.4     5     20    -   -
            >272000                8     0.8     10    30    -   -
        gpt-5.6-terra              2     0.2     2.5   12    -   -
            >272000                4     0.4     5     18    -   -
        gpt-5.6-luna               0.2   0.02    0.25  1.2   -   -
            >272000                0.4   0.04    0.5   1.8   -   -
        gpt-5.5-pro                30    -       -     180   -   -
            >272000                60    -       -     270   -   -
        gpt-5.5                    5     0.5     -     30    -   -
            >272000                10    1       -     45    -   -
        gpt-5.4-pro                30    -       -     180   -   -
            >272000                60    -       -     270   -   -
        gpt-5.4                    2.5   0.25    -     15    -   -
            >272000                5     0.5     -     22.5  -   -
        gpt-5.4-mini               0.75  0.075   -     4.5   -   -
        gpt-5.4-nano               0.2   0.02    -     1.25  -   -
        gpt-5.3-codex,gpt-5.3-chat-latest 1.75 0.175 - 14    -   -
        gpt-5.2-pro                21    -       -     168   -   -
        gpt-5.2,gpt-5.2-chat-latest 1.75 0.175   -     14    -   -
        gpt-5.1,gpt-5.1-chat-latest 1.25 0.125   -     10    -   -
        gpt-5.1-codex,gpt-5.1-codex-max 1.25 0.125 -   10    -   -
        gpt-5.1-codex-mini         0.25  0.025   -     2     -   -
        gpt-5-pro                  15    -       -     120   -   -
        gpt-5,gpt-5-chat-latest    1.25  0.125   -     10    -   -
        gpt-5-codex,gpt-5-search-api 1.25 0.125  -     10    -   -
        gpt-5-mini                 0.25  0.025   -     2     -   -
        gpt-5-nano                 0.05  0.005   -     0.4   -   -
        gpt-4.1                    2     0.5     -     8     -   -
        gpt-4.1-mini               0.4   0.1     -     1.6   -   -
        gpt-4.1-nano               0.1   0.025   -     0.4   -   -
        gpt-4o                     2.5   1.25    -     10    -   -
        gpt-4o-2024-05-13          5     -       -     15    -   -
        gpt-4o-mini                0.15  0.075   -     0.6   -   -
        chatgpt-4o-latest          5     -       -     15    -   -
        o4-mini                    1.1   0.275   -     4.4   -   -
        o4-mini-deep-research      2     0.5     -     8     -   -
        o3-pro                     20    -       -     80    -   -
        o3                         2     0.5     -     8     -   -
        o3-deep-research           10    2.5     -     40    -   -
        o3-mini                    1.1   0.55    -     4.4   -   -
        o1-pro                     150   -       -     600   -   -
        o1                         15    7.5     -     60    -   -
        o1-mini                    1.1   0.55    -     4.4   -   -
        gpt-4-turbo,gpt-4-turbo-preview 10 -     -     30    -   -
        gpt-4,gpt-4-0613           30    -       -     60    -   -
        gpt-3.5-turbo,gpt-3.5-turbo-0125 0.5 -   -     1.5   -   -
        gpt-audio,gpt-audio-1.5    2.5   -       -     10    32  64
        gpt-audio-mini             0.6   -       -     2.4   10  20
        gpt-4o-transcribe          2.5   -       -     10    6   -
        gpt-4o-mini-transcribe     1.25  -       -     5     3   -
        text-embedding-3-large     0.13  -       -     -     -   -
        text-embedding-3-small     0.02  -       -     -     -   -
        text-embedding-ada-002     0.1   -       -     -     -   -
        """,
    ),
    PriceList(
        "Anthropic",
        ("api.anthropic.com",),
        "https://platform.claude.com/docs/en/about-claude/pricing",
        "2026-11",
        "input cached cache_write cache_write_1h output",
        """
        claude-fable-5-2           8     0.2     10    16    40
        claude-fable-5-1           10    0.25    12.5  20    50
        claude-fable-5             10    1       12.5  20    50
        claude-mythos-5-2          8     0.2     10    16    40
        claude-mythos-5-1          10    0.25    12.5  20    50
        claude-mythos-5            10    1       12.5  20    50
        claude-opus-5-5            4     0.2     5     8     20
        claude-opus-5              5     0.5     6.25  10    25
        claude-opus-4-8            5     0.5     6.25  10    25
        claude-opus-4-7            5     0.5     6.25  10    25
        claude-opus-4-6            5     0.5     6.25  10    25
        claude-opus-4-5            5     0.5     6.25  10    25
        claude-opus-4-1            15    1.5     18.75 30    75
        claude-opus-4,claude-opus-4-0 15 1.5     18.75 30    75
        claude-sonnet-5-5          2     0.1     2.5   4     10
        claude-sonnet-5            2     0.2     2.5   4     10
        claude-sonnet-4-6          3     0.3     3.75  6     15
        claude-sonnet-4-5          3     0.3     3.75  6     15
        claude-sonnet-4,claude-sonnet-4-0 3 0.3  3.75  6     15
        claude-haiku-5-5           0.1   0.01    0.125 0.2   0.5
            >100000                0.5   0.05    0.625 1     2.5
        claude-haiku-4-5           1     0.1     1.25  2     5
        claude-3-5-haiku,claude-3-5-haiku-latest 0.8 0.08 1 1.6 4
        """,
    ),
    PriceList(
        "Google",
        ("generativelanguage.googleapis.com",),
        "https://ai.google.dev/gemini-api/docs/pricing",
        "2026-11",
        "input cached output audio_input",
        """
        gemini-4-argon             4     0.2     20    -
        gemini-3.8-flash,gemini-flash-latest 1.5 0.15 7.5 -
        gemini-3.7-flash           1.5   0.15    7.5   -
        gemini-3.6-flash           1.5   0.15    7.5   -
        gemini-3.5-flash           1.5   0.15    9     -
        gemini-3.5-flash-lite,gemini-flash-lite-latest 0.3 0.03 2.5 -
        gemini-3.1-pro-preview,gemini-pro-latest 2 0.2 12 -
            >200000                4     0.4     18    -
        gemini-3.1-flash-lite      0.25  0.025   1.5   0.5
        gemini-3-flash-preview     0.5   0.05    3     1
        gemini-2.5-pro             1.25  0.125   10    -
            >200000                2.5   0.25    15    -
        gemini-2.5-flash           0.3   0.03    2.5   1
        gemini-2.5-flash-lite      0.1   0.01    0.4   0.3
        gemini-embedding-001       0.15  -       -     -
        """,
    ),
    PriceList(
        "Mistral",
        ("api.mistral.ai",),
        "https://mistral.ai/pricing/api",
        "2026-11",
        "input cached output",
        """
        mistral-large-4,mistral-large-4-0 0.7 0.07 2.1
        mistral-large-2512         0.5   0.05    1.5
        mistral-medium-3-5,mistral-medium-2604 1.5 0.15 7.5
        mistral-medium-latest      1.5   0.15    7.5
        mistral-medium-2508,mistral-medium-2505 0.4 0.04 2
        mistral-small-2603,mistral-small-latest 0.15 0.015 0.6
        mistral-small-2506         0.1   -       0.3
        ministral-14b-2512         0.2   0.02    0.2
        ministral-8b-2512,ministral-8b-latest 0.15 0.015 0.15
        ministral-3b-2512          0.1   0.01    0.1
        codestral-2508             0.3   0.03    0.9
        codestral-embed-2505       0.15  0.015   -
        mistral-embed,mistral-embed-2312 0.1 -   -
        """,
    ),
    PriceList(
        "Cohere",
        ("api.cohere.com", "api.cohere.ai"),
        "https://cohere.com/pricing",
        "2026-11",
        "input output",
        """
        command-a-03-2025          2.5   10
        command-r-plus-08-2024     2.5   10
        command-r-08-2024          0.15  0.6
        command-r7b-12-2024        0.0375 0.15
        embed-v4.0                 0.12  -
        """,
    ),
    PriceList(
        "Groq",
        ("api.groq.com",),
        "https://console.groq.com/docs/models",
        "2026-11",
        "input cached output",
        """
        openai/gpt-oss-120b        0.15  0.075   0.6
        openai/gpt-oss-20b         0.075 0.0375  0.3
        openai/gpt-oss-safeguard-20b 0.075 0.0375 0.3
        llama-3.3-70b-versatile    0.59  -       0.79
        llama-3.1-8b-instant       0.05  -       0.08
        meta-llama/llama-4-scout-17b-16e-instruct 0.11 - 0.34
        qwen/qwen3.8-27b           0.8   -       4
        qwen/qwen3-32b             0.29  -       0.59
        moonshotai/kimi-k2-instruct,moonshotai/kimi-k2-instruct-0905 1 0.5 3
        meta-llama/llama-guard-4-12b 0.2 -       0.2
        """,
    ),
    PriceList(
        "DeepSeek",
        ("api.deepseek.com",),
        "https://api-docs.deepseek.com/quick_start/pricing",
        "2026-11",
        "input cached output",
        """
        deepseek-flash,deepseek-v4-flash 0.3 0.006 1.2
        deepseek-v4-pro            1.32  0.044   3.96
        """,
    ),
    PriceList(
        "xAI",
        ("api.x.ai",),
        "https://docs.x.ai/docs/models",
        "2026-11",
        "input cached output",
        """
        grok-4.7                   2     0.5     6
            >199999                4     1       12
        grok-4.6                   2     0.5     6
            >199999                4     1       12
        grok-4.5                   2     0.3     6
            >199999                4     0.6     12
        grok-4.3                   1.25  0.2     2.5
            >199999                2.5   0.4     5
        grok-4.20,grok-4.20-0309-reasoning,grok-4.20-0309-non-reasoning 1.25 0.2 2.5
            >199999                2.5   0.4     5
        grok-4-1-fast,grok-4-1-fast-reasoning,grok-4-1-fast-non-reasoning 0.2 0.05 0.5
        grok-4-fast,grok-4-fast-reasoning,grok-4-fast-non-reasoning 0.2 0.05 0.5
        grok-4,grok-4-0709,grok-4-latest 3 0.75  15
        grok-3,grok-3-latest       3     0.75    15
        grok-3-mini,grok-3-mini-latest 0.3 0.075 0.5
        grok-code-fast-1           0.2   0.02    1.5
        grok-build-0.1             1     0.2     2
            >199999                2     0.4     4
        """,
    ),
)
