"""How the demo's customers write. The wordings are the demo's own: the starter model's corpus
(`assets/starter/recipe`) has others. `UNSEEN` wordings are kept for the held-out file alone."""

PRODUCTS = [
    "desk lamp", "coffee grinder", "rain jacket", "office chair", "water bottle", "yoga mat", "wool blanket",
    "phone case", "hiking boots", "alarm clock", "travel bag", "tea kettle", "bike helmet", "frying pan",
]

# intent: the wordings for training and validation, `{p}` is the product.
WORDINGS = {
    "refund_request": [
        "I [would like|want] [a refund|my money back] for the {p} I [returned|sent back]",
        "please refund [me|my payment] for the {p}, [it is not for me|I do not like it]",
        "[still no refund|no refund yet] for the {p} [I returned|that went back to you]",
        "the {p} [disappoints me|does not fit my needs] and I [want|expect] my money back",
        "can I get a refund [on|for] the {p}, [it was never used|the box is still closed]?",
        "I [returned|sent back] the {p} [two weeks ago|in {month}], [where is my money|when do I get my money]?",
        "[requesting|asking for] a full refund of the {p}",
        "what must I do to [be refunded|get my money back] for the {p}?",
        "[your page promises|you promise] money back, so please refund the {p}",
    ],
    "delivery_status": [
        "[any news|is there news] about the delivery of my {p}?",
        "my {p} was [due|promised] on {day} and has still not [come|arrived]",
        "where is the parcel with my {p}?",
        "I [keep waiting|have waited for days] for my {p} to arrive",
        "the tracking of my {p} [stands still|has not moved] since {day}",
        "when [can I expect|do I get] the {p} [I bought|I ordered]?",
        "could you check [when|if] my {p} [was shipped|left the store]?",
        "the courier [never came|did not come] with my {p}, where is it now?",
        "has my {p} been [shipped|sent] yet?",
    ],
    "cancel_order": [
        "please cancel my {p}, I [changed my mind|ordered too much]",
        "I [have to|must] cancel the {p} [today|before it ships]",
        "I no longer [need|want] the {p}, [cancel it please|please cancel the order]",
        "can I still cancel [my order of|the order for] the {p}?",
        "[kindly|please] stop the order of the {p}, [it was a mistake|I bought it by accident]",
        "cancel the {p} please, my [friend|brother|sister] already [has|bought] one",
        "I [found|got] the {p} in [another|a local] shop, so please cancel",
        "do not ship the {p}, I want to cancel",
    ],
    "address_change": [
        "please send my {p} to [our office|my new home] at {house} {street} Street instead",
        "I [just moved|moved last week], the new address for the {p} is {house} {street} Street, {city}",
        "the delivery address for my {p} is wrong, [please correct it to|it is] {house} {street} Street",
        "can the {p} go to [a different|another] address in {city}?",
        "I need to change the [address|delivery address] of my {p}",
        "[please update|update please] the address for the {p}: {house} {street} Street, {city}",
        "I typed the wrong house number for the {p}, it is {house}",
        "my {p} must not go to the old address, I live in {city} now",
    ],
    "damaged_item": [
        "my {p} came [damaged|broken] [today|on {day}]",
        "the {p} has a [big crack|deep scratch|large dent] on [one side|the front]",
        "when I opened the box the {p} was [broken|smashed|in pieces]",
        "the {p} was [damaged|broken] [on the way|in the post]",
        "I [got|received] a {p} that is [bent|broken|cracked]",
        "the parcel was [wet|crushed] and now the {p} is [damaged|broken]",
        "one side of the {p} is [smashed|cracked|bent], it [arrived|came] like this",
        "[sadly|sorry to say] the {p} [arrived|came] in pieces",
    ],
    "wrong_item": [
        "I ordered the {p} but [you sent|the box holds] something else",
        "the wrong {p} [was sent|came], I chose a {colour} one",
        "you [sent|shipped] the wrong article instead of the {p}",
        "this is not the {p} that I [ordered|chose]",
        "I [got|received] a different item, not the {p} I [paid for|ordered]",
        "instead of my {p} [a different thing|another article] was in the parcel",
        "someone mixed up the parcels: I wanted the {p} and got something else",
        "my {p} is the wrong [colour|size], I [asked for|ordered] {colour}",
    ],
    "billing_problem": [
        "my card was charged [twice|two times] for the {p}",
        "the [bill|invoice] for my {p} is [too high|wrong]",
        "I [paid|was billed] {dd} [dollars|euros] too much for the {p}",
        "why was I charged [again|twice] for the {p}?",
        "the amount on the [bill|invoice] of the {p} [is not right|does not match the price]",
        "there are two [payments|charges] for one {p} on my card",
        "you [billed|charged] the {p} twice, please [check|correct] the payment",
        "I do not understand the charge for the {p} on my bill",
    ],
    "account_access": [
        "I cannot [log in|sign in] to [check|look up] my {p} order",
        "my account is locked and I [want|need] to see the order of the {p}",
        "the password [reset mail never comes|reset does not work], I need to see my {p} order",
        "I forgot my password and cannot [open|see] my order of the {p}",
        "the login [fails|shows an error] each time I [look for|check] the {p}",
        "your site does not [take|accept] my password when I look up the {p}",
        "[please unlock|can you unlock] my account, I want to [see|track] the {p} there",
        "I lost my password, so I cannot log in to see the {p}",
    ],
    "warranty_claim": [
        "the {p} [broke|stopped working] after {d} months and is [still under warranty|under guarantee]",
        "I want to [make|file] a warranty claim for my {p}",
        "my {p} failed after {d} months, does the [warranty|guarantee] cover [this|a repair]?",
        "please repair my {p} under the [warranty|guarantee]",
        "is [a worn|a failed] {p} covered by the [warranty|guarantee] after {d} months?",
        "after {d} months of use my {p} gave up, I ask for [a repair|the guarantee]",
        "the [warranty|guarantee] of my {p} runs until {month} and it no longer works",
        "I have a warranty question: my {p} stopped working after {d} months",
    ],
    "product_question": [
        "is the {p} [easy to clean|safe for children|good for travel]?",
        "what is the {p} made of?",
        "how [heavy|big|long] is the {p}?",
        "can you tell me [the size|the weight] of the {p}?",
        "do you have the {p} in {colour}?",
        "before I [buy|order] another one: what [colours|sizes] does the {p} come in?",
        "I [want|would like] to know [which material|what material] the {p} has",
        "does the {p} come in {colour} or in {colour} only?",
    ],
}

# Wordings that only the held-out tickets use.
UNSEEN = {
    "refund_request": [
        "the {p} went back to your store, now I want the refund you promised",
        "I ask you to pay my money back, the {p} was a bad choice",
    ],
    "delivery_status": [
        "it is {day} and there is still no parcel, when will the {p} arrive?",
        "I am waiting for the {p}, can you tell me where it is?",
    ],
    "cancel_order": [
        "we do not want the {p} any more, cancel the order please",
        "I ordered the {p} by mistake, is it possible to cancel?",
    ],
    "address_change": [
        "I will be in {city} next week, so please change the address for the {p}",
        "the {p} should be sent to my new address, {house} {street} Street",
    ],
    "damaged_item": [
        "I unpacked the {p} and it was damaged, with a crack in the middle",
        "there was a broken {p} in the box that came today",
    ],
    "wrong_item": [
        "you sent me something else, I had ordered the {p}",
        "the parcel came with the wrong item in it, I chose the {p}",
    ],
    "billing_problem": [
        "for one {p} you took the payment twice from my card",
        "the price on my bill for the {p} is too high, I was charged too much",
    ],
    "account_access": [
        "my login does not work, so I cannot see the {p} I ordered",
        "since {day} I cannot sign in, my password is wrong they say, and I want to check on the {p}",
    ],
    "warranty_claim": [
        "the {p} is {d} months old and no longer works, I want to use the warranty",
        "my {p} gave up after {d} months, how do I claim the guarantee?",
    ],
    "product_question": [
        "I would like to know the size of the {p} and what it is made of",
        "could you say how heavy the {p} is and if it comes in {colour}?",
    ],
}

GREETINGS = ["hello", "hi", "hi there", "good [morning|evening]", "dear [team|support]", "hello support team", "hey"]
CLOSINGS = ["thanks", "thank you", "many thanks", "best regards", "kind regards", "best", "cheers"]

ORDER_BEFORE = ["order {n}:", "my order number is {n}.", "this is about order {n}.", "about order #{n}:", "[re|regarding] order {n}."]
ORDER_INSIDE = ["(order {n})", "(order #{n})", "from order {n}", "in order {n}", "(#{n})", "with order number {n}"]
ORDER_AFTER = ["my order number is {n}.", "order: {n}.", "order number {n}.", "it is order {n}.", "the order is #{n}.", "you find it under order {n}."]

PRESSING = [
    "[this is|it is] [urgent|very urgent].", "[please hurry|hurry up please].", "I need [this|it] solved [today|at once|right now].",
    "I [cannot|can't] wait any longer.", "please answer [at once|right away|as soon as possible|asap].", "it must be done [today|by tomorrow].", "urgent!",
]
RELAXED = [
    "[there is no|no] [rush|hurry].", "take your time.", "[whenever|when] you have time.", "it [can wait|is not urgent].",
    "I am in no hurry.", "no need to hurry.", "any day next week is fine.",
]
PLAIN = ["please let me know.", "what should I do?", "can you help me?", "I look forward to your answer.", "please write back to me.", "I hope you can help."]

ASIDES = [
    "it was a gift for my [mother|father|sister|brother|friend].", "I have been with you for {d} years.", "I live in {city}.",
    "I paid {dd} dollars for it.", "I bought it [last|on] {day}.", "I already [called|wrote] {d} times.", "I [really like|love] your shop.", "I am not happy about this.",
]
