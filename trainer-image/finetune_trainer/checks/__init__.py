"""The data checks: what is wrong with a job's examples, before a GPU is asked for.

    review    one pass over the rows, then the judgement: which rules fire, where, and which rows are left out
    rule      what a rule is: of one row (it looks at an example) or of the table (it looks at columns of numbers)
    table     the columns: hashes, marks and languages of every row, never its text, so that a million rows fit into memory
    texts     rules of one row that look for patterns in its texts
    calls     rules of one row about tools and calls of them
    encodings rules of one row that look at its tokens
    answers   rules of the table about answers: labels, JSON, reasoning, languages
    repeats   rules of the table about equal rows: duplicates, contradictions, leakage
    similar   rules of the table about nearly equal rows, by MinHash
    languages the language of a text
    sample    a thousand examples as hashes, for what the advisor asks of the data as a whole:
    novelty   whether answers carry facts
    variety   how many examples there are once near copies count once

Names, severities and policies of the rules are part of the API: `finetune_api.checks`.
"""
