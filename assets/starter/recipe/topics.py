"""What customers write about. Each topic has the wish in plain words (how an agent would note it)
and the ways customers open such a letter; `{p}` is the thing it is about."""

TOPICS = {
    "refund": (
        "their money back",
        [
            "[I want|I would like|I'd like] [a refund|my money back|to be refunded] for the {p}",
            "please [refund|pay back] the {p}",
            "the {p} is not what I [hoped for|expected], so please [return|send back] my money",
            "I [sent|gave] the {p} back [last week|on {day}] and still wait for the [money|refund]",
            "can I [return|send back] the {p} and get [my money|the full price] back?",
            "how do I get [my money back|a refund] for the {p}?",
            "I am not happy with the {p} and [ask for|want] [a full refund|all my money back]",
            "when will [you refund me|the refund come] for the {p} [I returned|I sent back]?",
        ],
    ),
    "tracking": (
        "to know where the parcel is",
        [
            "where is [my|the] {p}?",
            "[my|the] {p} has not [arrived|come] yet",
            "when will [my|the] {p} [arrive|get here|be delivered]?",
            "I [am still waiting|still wait] for the {p} I [ordered|bought] [weeks|days] ago",
            "can you [tell me|check] where [the parcel|the package] with the {p} is?",
            "the tracking page for the {p} [has not changed|shows nothing] since {day}",
            "has the {p} [been sent|left your store|shipped] yet?",
            "the {p} should have [come|been here] on {day}, but [nothing came|there is no sign of it]",
        ],
    ),
    "cancel": (
        "to cancel the order",
        [
            "please cancel [my order of|the order for] the {p}",
            "I [changed my mind|no longer want] [about|to have] the {p}, please [stop|cancel] the order",
            "I [want|would like|need] to cancel the {p}",
            "do not send the {p}, I [do not|don't] need it any more",
            "can [I still|you] cancel the {p} before it [ships|leaves]?",
            "I ordered the {p} by [mistake|accident], [cancel it please|please call it off]",
            "stop the order for the {p}, I [found|bought] one [elsewhere|in another shop]",
        ],
    ),
    "address": (
        "to have the parcel sent to another address",
        [
            "please [send|deliver] the {p} to a [new|different|another] address: {house} {street} Street, {city}",
            "I [moved|am moving] to {city}, so the {p} must go to {house} {street} Street",
            "can you change the [delivery|shipping] address for the {p}?",
            "I gave the wrong address for the {p}, it [should be|is] {house} {street} Street",
            "the {p} is going to my old [address|home], please [change|correct] it to {street} Street",
            "the house number for the {p} is wrong, it [must|should] be {house}",
        ],
    ),
    "damaged": (
        "help with a broken item",
        [
            "the {p} [arrived|came] [broken|damaged|cracked|in pieces]",
            "my {p} was [broken|damaged|smashed] [in the box|when I opened the box]",
            "there is a [crack|big scratch|hole|dent] in the {p} [you sent|that came today]",
            "the box was [crushed|wet] and the {p} inside is [damaged|broken]",
            "I [opened|unpacked] the {p} and found it [cracked|damaged|bent]",
            "the {p} must have been [dropped|damaged] on the way, it is [in pieces|bent]",
        ],
    ),
    "wrong": (
        "the right item, because a wrong one came",
        [
            "you sent me the wrong {p}",
            "I ordered the {p} but [got|received] [something else|another thing]",
            "the {p} in the box is not the one I [ordered|chose]",
            "instead of the {p} [there was|I found] [a different item|something else] in the box",
            "I [asked for|ordered] a {colour} {p}, but [the wrong colour came|a different one came]",
            "this is not my order: I [paid for|chose] the {p} and [another article|something else] came",
        ],
    ),
    "billing": (
        "an explanation of a charge",
        [
            "I was charged [twice|two times] for the {p}",
            "why is the [bill|price|charge] for the {p} [higher than|not the same as] [on your page|agreed]?",
            "there is a [charge|payment] for the {p} on my card that I do not [know|understand]",
            "my card was [billed|charged] [too much|twice] for the {p}",
            "the [bill|invoice] for the {p} shows the wrong [amount|total|sum]",
            "you took [the money|the payment] for the {p} [two times|twice]",
        ],
    ),
    "account": (
        "help with signing in",
        [
            "I [cannot|can not|can't] [log in|sign in] to see my order of the {p}",
            "my password [does not work|is not accepted], and I want to look up the {p}",
            "I am locked out of my account and cannot [see|check] the {p}",
            "the login page [shows an error|does not open] when I look for the {p}",
            "I [forgot|lost] my password and need to get to my order of the {p}",
            "[resetting|changing] my password fails, so I cannot see the {p} in my account",
        ],
    ),
    "warranty": (
        "a repair under the guarantee",
        [
            "the {p} [stopped working|broke down|gave up] after {d} months, is it [under guarantee|still covered]?",
            "my {p} no longer [works|works well] and the [guarantee|warranty] [runs until|ends in] {month}",
            "can you repair the {p} under the [guarantee|warranty]?",
            "after only {d} months the {p} [failed|is worn out], I [want to use|ask for] the [guarantee|warranty]",
            "I have a {d} year [guarantee|warranty] on the {p} and it [has failed|needs a repair]",
            "how do I make a [guarantee|warranty] claim for the {p}?",
        ],
    ),
    "question": (
        "to know more about the product",
        [
            "what [size|material|colour] is the {p}?",
            "[before I buy|before I order], is the {p} [safe for children|easy to clean|made of steel]?",
            "how [big|heavy|tall] is the {p}?",
            "does the {p} [come in|exist in] {colour}?",
            "can [I|you] [wash|use] the {p} [in hot water|outside|every day]?",
            "I have a question about the {p}: [what is it made of|how much does it weigh|does it need batteries]?",
        ],
    ),
    "missing": (
        "a part that was missing",
        [
            "a [screw|part|lid|cable|handle] was missing from the {p}",
            "the {p} came without [the manual|the cable|all its parts]",
            "I cannot [build|finish] the {p}, because [a part|one piece] is not in the box",
        ],
    ),
    "gift": (
        "the parcel wrapped as a gift",
        [
            "please [wrap|pack] the {p} as a [gift|present]",
            "can you put a [card|ribbon] [on|with] the {p}? It is for a birthday",
            "I want gift paper for the {p}",
        ],
    ),
    "invoice": (
        "a copy of the invoice",
        [
            "please send me [a copy of the|the] [invoice|receipt] for the {p}",
            "I [lost|need] the [invoice|receipt] for the {p} [for my taxes|for my boss]",
            "could I have the [bill|invoice] for the {p} [by mail|on paper]?",
        ],
    ),
    "discount": (
        "to use a discount",
        [
            "my discount [code|coupon] did not work for the {p}",
            "is there a [discount|lower price] for the {p}?",
            "I forgot to use my [coupon|discount code] when I ordered the {p}",
        ],
    ),
    "bulk": (
        "a price for many pieces",
        [
            "what does it cost to [order|buy] {dd} pieces of the {p}?",
            "our [office|school|club] needs {dd} of the {p}, what is your [offer|price]?",
        ],
    ),
    "assembly": (
        "to know how to put it together",
        [
            "how do I [put together|assemble|set up] the {p}?",
            "the manual of the {p} is hard to [read|follow], how [do I build it|does it go together]?",
        ],
    ),
    "schedule": (
        "another day for the delivery",
        [
            "can you [bring|deliver] the {p} on {day} instead?",
            "I am not at home on {day}, please [bring|deliver] the {p} [later|on another day]",
        ],
    ),
    "praise": (
        "to say thank you",
        [
            "I [love|really like] the {p}, [well done|great work]",
            "the {p} is [perfect|wonderful|great], I just [want|wanted] to say thank you",
        ],
    ),
    "stock": (
        "to know when it is in stock again",
        [
            "when will the {p} be [in stock|available] again?",
            "your page says the {p} is sold out, when [will it be back|do you get more]?",
        ],
    ),
    "spare": (
        "to buy a spare part",
        [
            "where can I [buy|get] a [spare part|new battery|new handle] for the {p}?",
            "do you sell [spare parts|a new cover] for the {p}?",
        ],
    ),
}
