"""Labels for the other stages: demonstrations, samples to be ranked, and rankings of them.

The rooms, from the ground up; a module imports from its own room and from those below it:

    config         settings, the constitution's (`constitution.config`) among them
    retry, sanitize    calls that are made again; text made safe to show
    store          the database, a project, its items, labels and events, and who gets which item
    analysis       agreement, consensus, disputes and decisions, strengths, the status of a project
    generation     texts by models, rankings by scripted labelers
    sessions       a labeler or an adjudicator at work, as every screen and script calls it
    exchange       files in and out: items, labels made elsewhere, scores, training data
    terminal, browser    the screens
    constitution   labels by a model that goes by written principles
    commands       the command line of a labeling project; `__main__` adds the commands that take a recipe

`tests/unit/labeling/test_rooms.py` keeps it so.
"""
