"""Data: from files to rows, to examples, to token ids. No torch.

    streams    the bytes of a file, decompressed
    rows       raw rows of JSONL, JSON, CSV and Parquet files, one at a time
    shapes     rows in one form, whatever dialect they are written in; which of their fields nothing reads
    dataset    examples: the meaning of rows, and the frozen split in storage
    questions  rows of which only the question is read, for a teacher to answer
    chats      turns of chats, their order, and the links between calls and results
    toolcalls  tools and tool calls, as rows and requests have them
    dialects   the dialects in which models write tool calls, and their parsers
    patterns   regular expressions of JSON Schemas, in bounded time
    values     JSON values: parsed strictly, compared by JSON's rules, checked against JSON Schemas
    split      train, validation and test, by groups of examples that share a prompt
    prompted   examples with a system prompt in place of their own
    templates  the chat template of a model folder, and what it can render
    tokens     examples as token ids, and which of them are learned
    spans      texts as token ids, many at once, and where in them their prompts end
    corpus     a split as token ids in memory-mapped files: the input of training

file -> rows -> shapes -> chats -> dataset -> split -> prompted, templates -> tokens, spans -> corpus
"""
