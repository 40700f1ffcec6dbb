"""V-COCO's actions and their roles: names alone, in the order of its own files.

Source: s-gupta/v-coco.
"""

ROLES = (
    ("hold", ("obj",)),
    ("stand", ()),
    ("sit", ("instr",)),
    ("ride", ("instr",)),
    ("walk", ()),
    ("look", ("obj",)),
    ("hit", ("instr", "obj")),
    ("eat", ("obj", "instr")),
    ("jump", ("instr",)),
    ("lay", ("instr",)),
    ("talk_on_phone", ("instr",)),
    ("carry", ("obj",)),
    ("throw", ("obj",)),
    ("catch", ("obj",)),
    ("cut", ("instr", "obj")),
    ("run", ()),
    ("work_on_computer", ("instr",)),
    ("ski", ("instr",)),
    ("surf", ("instr",)),
    ("skateboard", ("instr",)),
    ("smile", ()),
    ("drink", ("instr",)),
    ("kick", ("obj",)),
    ("point", ("instr",)),
    ("read", ("obj",)),
    ("snowboard", ("instr",)),
)
"""V-COCO's 26 actions in its own order, each with the roles that an object may have."""

ACTIONS = tuple(action for action, _ in ROLES)
ACTION_ROLES = tuple((action, role) for action, roles in ROLES for role in roles)
KEYS = tuple(f"{action}_{role}" for action, roles in ROLES for role in roles or ("agent",))
"""The 29 scores of a row: 25 action-role pairs, and the agent of the four actions without a role."""
