"""The data checks: what is wrong with a job's examples, before a GPU is requested.

    review    one pass over the rows, then the rules: which fire, where, and which rows are left out
    rule      the two kinds of rules: row rules (of one example) and table rules (of columns of numbers)
    table     the columns: hashes, marks and languages of every row, never its text, so that a million rows fit into memory
    texts     row rules: patterns in the texts
    calls     row rules: tool calls
    encodings row rules: the tokens
    answers   table rules: answers: labels, JSON, cut answers, reasoning, languages
    repeats   table rules: equal rows: duplicates, contradictions, leakage
    similar   table rules: nearly equal rows, by MinHash
    languages the language of a text
    purpose   whether the examples are of the kind that objective, evaluation and gates need
    sample    a thousand examples as hashes, for the advisor's measurements of the data as a whole:
    novelty   whether answers contain facts
    variety   the number of examples, with near copies counted once

Names, severities and policies of the rules are part of the API: `finetune_api.checks`.
"""
