"""The claims, the trainings that they share, and the scales: literal tables."""

from elit.claims.claim import Arm, Claim, Comparison, Drawn, Given, HeldOut, Run, Scale, Seen, Trained

SCALES = {
    # a claim within 40 minutes of two quiet cores: for their FLOPs, small models that are trained for longer
    "desk": Scale(
        width=96,
        depth=6,
        heads=3,
        patch=4,
        batch=16,
        steps=1500,
        seeds=3,
        pictures=128,
        samples=192,
        sampler_steps=16,
    ),
    # all claims within about an hour of one core
    "small": Scale(
        width=96,
        depth=6,
        heads=3,
        patch=4,
        batch=16,
        steps=400,
        seeds=3,
        pictures=96,
        samples=96,
        sampler_steps=12,
    ),
    # minutes of one core: how everything works, and not what is true
    "glance": Scale(
        width=64,
        depth=4,
        heads=2,
        patch=8,
        batch=8,
        steps=100,
        seeds=3,
        pictures=48,
        samples=48,
        sampler_steps=8,
    ),
    # for tests: seconds, and nothing is learned
    "tiny": Scale(
        width=16,
        depth=3,
        heads=2,
        patch=8,
        batch=2,
        steps=4,
        seeds=2,
        pictures=4,
        samples=4,
        sampler_steps=2,
    ),
}

ELASTIC = ("--model.group_size=4", "--model.head_depth=1", "--model.tail_depth=1")
PADDED = ("--architecture=Padded", "--model.padding={half}")  # half the grid on every side: four times the tokens


def budgets(lowest: float, highest: float) -> tuple[str, ...]:
    return (*ELASTIC, f"--budget.lowest={lowest}", f"--budget.highest={highest}")


RUNS = {
    "dense": Run(("--model.group_size=null",)),
    "multi": Run(budgets(0.0625, 1.0)),
    "full": Run(budgets(1.0, 1.0)),
    "half": Run(budgets(0.5, 0.5)),
    "quarter": Run(budgets(0.25, 0.25)),
    "random": Run((*budgets(0.0625, 1.0), "--budget.dropping=random")),
    "anchored": Run((*budgets(0.0625, 1.0), "--model.anchor=cells")),
    "few-at-high-noise": Run((*ELASTIC, "--budget.schedule=1/2@t>0.5,1")),
    "few-at-low-noise": Run((*ELASTIC, "--budget.schedule=1@t>0.5,1/2")),
    "dense-padded": Run(("--model.group_size=null", *PADDED), like=("dense", 0.25)),
    "elastic-padded": Run((*budgets(1.0, 1.0), "--model.group_size={side}", *PADDED), like=("full", 0.25)),
}

SHARES = (0.25, 0.5, 1.0)
WEAK, GUIDANCE_SCALES = 1 / 16, (1.5, 2.5, 4.0)
MULTI = Trained("multi")


def lower(run: str, other: str, budget: str, beside: bool = False) -> Comparison:
    """That one run's loss at a budget is below another's."""
    says = f"{run} is better than {other} at {budget} of the latents"
    a, b = HeldOut(Trained(run), budget), HeldOut(Trained(other), "1" if other == "dense" else budget)
    return Comparison(says, (a,), (b,), decides=not beside)


def over_budgets(run: str, *tried: str) -> tuple[Arm, ...]:
    return tuple(HeldOut(Trained(run), budget) for budget in tried)


def over_training(run: str, budget: str = "1") -> tuple[Arm, ...]:
    return tuple(HeldOut(Trained(run, share), budget) for share in SHARES)


def cheap(scale: float) -> Drawn:
    """Cheap CFG: the weak path has no label, and few latents."""
    return Drawn(MULTI, scale=scale, weak_budget=WEAK)


def auto(scale: float) -> Drawn:
    """Autoguidance: the weak path keeps the label, and has few latents."""
    return Drawn(MULTI, scale=scale, weak_budget=WEAK, weak_label="same")


def whole(scale: float) -> Drawn:
    """CFG in as many steps as cheap CFG of that scale pays for."""
    return Drawn(MULTI, scale=scale, paid=cheap(scale))


CFG, CHEAP, AUTO = (tuple(map(kind, GUIDANCE_SCALES)) for kind in (whole, cheap, auto))
SPENT = {budget: Drawn(MULTI, budget) for budget in ("1", "1/2", "1/4", "1/16")}
FEWER_STEPS = {budget: Drawn(MULTI, paid=arm) for budget, arm in SPENT.items() if budget != "1"}
SEEN = Seen(Trained("elastic-padded"))

CLAIMS = (
    Claim(
        "one-for-all",
        "One model for all budgets, or one for each",
        "One multi-budget model beats models that were trained for one budget each, at 1, 1/2 and 1/4 of the latents.",
        "One model trained on budgets drawn anew in every step, and three that were trained at 1, 1/2 and 1/4 of the"
        " latents alone, each with the same FLOPs as the one.",
        (lower("multi", "full", "1"), lower("multi", "half", "1/2"), lower("multi", "quarter", "1/4")),
        "budget",
        {
            "one for all": over_budgets("multi", "1/4", "1/2", "1"),
            "one for each": (
                HeldOut(Trained("quarter"), "1/4"),
                HeldOut(Trained("half"), "1/2"),
                HeldOut(Trained("full"), "1"),
            ),
        },
    ),
    Claim(
        "quarter-recipe",
        "The 25 % recipe: a quarter of the latents in training",
        "Training at a quarter of the latents costs less than half of the FLOPs, and little quality, for the same steps.",
        "A model trained at 1/4 of the latents for as many steps as one at the full budget; and, beside, for as many FLOPs.",
        (
            Comparison(
                "after as many steps, quarter lies less than 5 % above full",
                (HeldOut(Trained("quarter", like="full"), "1/4"),),
                (HeldOut(Trained("full")),),
                margin=0.05,
            ),
            Comparison(
                "for as many FLOPs, quarter is better than full",
                (HeldOut(Trained("quarter"), "1/4"),),
                (HeldOut(Trained("full")),),
                decides=False,
            ),
        ),
        "TFLOPs of training",
        {
            "full budget": over_training("full"),
            "a quarter": (HeldOut(Trained("quarter", like="full"), "1/4"), HeldOut(Trained("quarter"), "1/4")),
        },
    ),
    Claim(
        "convergence",
        "Elastic against dense, FLOP for FLOP",
        "At the same training FLOPs an elastic model is better than the dense model of the same blocks.",
        "A dense model, and elastic ones trained at the full budget alone and on drawn budgets, measured at the full budget"
        " on the way.",
        (
            Comparison("full is better than dense", (HeldOut(Trained("full")),), (HeldOut(Trained("dense")),)),
            lower("multi", "dense", "1", beside=True),
        ),
        "TFLOPs of training",
        {
            "dense": over_training("dense"),
            "elastic, full budget alone": over_training("full"),
            "elastic, drawn budgets": over_training("multi"),
        },
    ),
    Claim(
        "tail-dropping",
        "Dropping the tail, or dropping any latents",
        "Latents that are dropped from the tail learn an order of importance, which random dropping cannot give.",
        "Both draw the same number of latents in every step; one keeps the first ones, the other any. Both are measured with"
        " their first latents.",
        (lower("multi", "random", "1/4"), lower("multi", "random", "1/16"), lower("multi", "random", "1", beside=True)),
        "budget",
        {
            "tail dropping": over_budgets("multi", "1/16", "1/4", "1"),
            "random dropping": over_budgets("random", "1/16", "1/4", "1"),
        },
    ),
    Claim(
        "anchored",
        "The anchored interface against the paper's",
        "This claim is ours: from the same start and for the same FLOPs, an anchored interface is better than the paper's.",
        "Both are trained from nothing on drawn budgets; the anchored one with anchor: cells.",
        (
            lower("anchored", "multi", "1"),
            lower("anchored", "multi", "1/4"),
            lower("anchored", "multi", "1/16", beside=True),
            lower("anchored", "dense", "1", beside=True),
        ),
        "budget",
        {
            "anchored": over_budgets("anchored", "1/16", "1/4", "1"),
            "the paper's": over_budgets("multi", "1/16", "1/4", "1"),
        },
    ),
    Claim(
        "noise-schedule",
        "Half of the latents where the noise is strong",
        "Training with half of the latents in the noisier half of the times costs little quality.",
        "One model trained with half of the latents at t > 0.5, and one with half of them at t <= 0.5, for the same FLOPs;"
        " each is measured with its own schedule.",
        (
            Comparison(
                "few latents at high noise are better than few at low noise",
                (HeldOut(Trained("few-at-high-noise"), "1/2@t>0.5,1"),),
                (HeldOut(Trained("few-at-low-noise"), "1@t>0.5,1/2"),),
            ),
            Comparison(
                "few latents at high noise lie less than 5 % above the full budget",
                (HeldOut(Trained("few-at-high-noise"), "1/2@t>0.5,1"),),
                (HeldOut(Trained("full")),),
                margin=0.05,
            ),
        ),
        "TFLOPs of training",
        {
            "half at high noise": over_training("few-at-high-noise", "1/2@t>0.5,1"),
            "half at low noise": over_training("few-at-low-noise", "1@t>0.5,1/2"),
            "full budget": over_training("full"),
        },
    ),
    Claim(
        "zero-padding",
        "Zeros around the picture: where Read looks",
        "Given four times the tokens, of which three quarters are zeros without loss, an elastic model spends its latents on"
        " the picture, and gains by it; a dense one spends as much on the zeros, and gains nothing.",
        "The picture in the middle of a grid of twice its sides, in windows of which a quarter is picture; a quarter of the"
        " steps of the others. Read that did not look would have 1/4 of its attention on the picture.",
        (
            Comparison("Read looks at the picture more than by chance", Given(0.25), (SEEN,)),
            Comparison(
                "the elastic model is better with zeros than without",
                (HeldOut(Trained("elastic-padded")),),
                (HeldOut(Trained("full", 0.25)),),
                decides=False,
            ),
            Comparison(
                "the dense model is better with zeros than without",
                (HeldOut(Trained("dense-padded")),),
                (HeldOut(Trained("dense", 0.25)),),
                decides=False,
            ),
        ),
        "Read's map",
    ),
    Claim(
        "cheap-guidance",
        "Cheap CFG and autoguidance against CFG",
        "Guided by the model's own low budget, samples are as good as with CFG and cost about a third less.",
        "Three scales of each kind, at equal FLOPs of an image: CFG takes fewer steps. The best scale of each is compared.",
        (
            Comparison("the best cheap CFG is better than the best CFG of equal cost", CHEAP, CFG),
            Comparison("the best autoguidance is better than the best CFG of equal cost", AUTO, CFG, decides=False),
            Comparison("the best CFG is better than no guidance", CFG, (Drawn(MULTI),), decides=False),
        ),
        "guidance scale",
        {
            "CFG, fewer steps": (Drawn(MULTI), *CFG),
            "cheap CFG": (Drawn(MULTI), *CHEAP),
            "autoguidance": (Drawn(MULTI), *AUTO),
        },
    ),
    Claim(
        "budget-or-steps",
        "Fewer latents, or fewer steps, at equal FLOPs",
        "To sample for less it is better to lower the budget than to take fewer steps.",
        "The multi-budget model at lower budgets, and at the full budget in as few steps as cost the same.",
        tuple(
            Comparison(
                f"{budget} of the latents are better than the full budget in fewer steps",
                (SPENT[budget],),
                (FEWER_STEPS[budget],),
                decides=budget != "1/16",
            )
            for budget in FEWER_STEPS
        ),
        "GFLOPs of an image",
        {
            "fewer latents": tuple(SPENT.values()),
            "fewer steps": (SPENT["1"], *FEWER_STEPS.values()),
        },
    ),
)
