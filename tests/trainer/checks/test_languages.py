import pytest

from finetune_trainer.checks import languages


@pytest.mark.parametrize(
    "text, name",
    [
        ("The heron stands in the lagoon and waits for what the tide will bring to it.", "English"),
        ("Der Reiher steht in der Lagune und wartet auf das, was die Flut ihm bringen wird.", "German"),
        ("Le héron se tient dans la lagune et attend ce que la marée va lui apporter pour le soir.", "French"),
        ("La garza está en la laguna y espera lo que la marea le va a traer por la tarde.", "Spanish"),
        (
            "L'airone sta nella laguna e aspetta che la marea gli porti qualcosa, ma non ha molta fame per ora.",
            "Italian",
        ),
        ("A garça está na lagoa e espera o que a maré vai trazer para ela, mas não tem muita fome.", "Portuguese"),
        (
            "De reiger staat in de lagune en wacht op wat het tij voor hem zal brengen, maar hij heeft geen honger.",
            "Dutch",
        ),
        ("Hägern står i lagunen och väntar på vad tidvattnet ska ge den, men den är inte så hungrig.", "Swedish"),
        ("Czapla stoi w lagunie i czeka na to, co jej przyniesie przypływ, ale nie jest już tak głodna.", "Polish"),
        ("Balıkçıl lagünde duruyor ve gelgitin ona ne getireceğini bekliyor, ama çok aç değil bu sabah.", "Turkish"),
        ("苍鹭站在泻湖里,等待潮水带来的东西。", "Chinese"),
        ("サギは潟に立って、潮が運んでくるものを待っています。", "Japanese"),
        ("왜가리는 석호에 서서 밀물을 기다리고 있습니다.", "Korean"),
        ("Цапля стоит в лагуне и ждёт, что принесёт ей прилив.", "a Cyrillic language"),
        ("يقف مالك الحزين في البحيرة وينتظر المد.", "Arabic"),
        ("האנפה עומדת בלגונה ומחכה לגאות.", "Hebrew"),
        ("Ο ερωδιός στέκεται στη λιμνοθάλασσα.", "Greek"),
    ],
)
def test_a_sentence_tells_its_language(text: str, name: str) -> None:
    assert languages.NAMES[languages.language(text)] == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ok",
        "refund",
        '{"intent": "refund", "reply": true}',
        "def area(r): return 3.14 * r ** 2",
        "12 + 7 = 19 → 漢",
        "A1-B2 / 77%",
    ],
)
def test_labels_numbers_and_code_have_none(text: str) -> None:
    assert languages.language(text) == languages.UNKNOWN


def test_a_foreign_name_does_not_change_the_language() -> None:
    text = "We have sent the parcel to Frau Müller and to 田中 in the same week, as you wanted."
    assert languages.NAMES[languages.language(text)] == "English"
