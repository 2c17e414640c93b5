// Adds, changes and removes agents and clients, and makes keys. What stands in a file is only shown.
const EDITED = {
  agents: [["corpid", "text"], ["secret", "password"], ["agentid", "number"], ["limit", "text"]],
  clients: [["agents", "list"], ["allow", "list"], ["limit", "text"], ["always_200", "checkbox"]],
};
let hasState = false;

// An authorised corp has a permanent code in place of a secret.
function editedFields(kind, entry) {
  return EDITED[kind].map(([key, type]) => [key === "secret" && entry?.suite ? "permanent_code" : key, type]);
}

function entryPath(kind, name) { return `api/${kind}/${encodeURIComponent(name)}`; }

function editButton(kind, name) {
  if (!hasState || name === null) return "";
  return createElement("button", { type: "button", "data-key": `edit ${kind} ${name}`, "aria-label": translate("editOf", name), onclick: () => openEntry(kind, name) }, translate("edit"));
}

async function openEntry(kind, name) {
  try {
    const entry = name === null ? null : await callApi(entryPath(kind, name));
    showEntry(kind, name, entry, name === null ? null : keptResponses.get(entryPath(kind, name))?.tag);
  } catch (error) {
    notice(translate("error", error.message), "bad");
  }
}

function showEntry(kind, name, entry, tag) {
  const dialog = byId("exchange"), isNew = name === null, isFixed = !isNew && !entry.origin.startsWith("state");
  const message = createElement("p", { id: "entry-message", role: "alert" });
  const form = createElement("form", { id: "entry", class: "form" },
    isNew ? fieldRow(translate("name"), createElement("input", { name: "name", required: true, autocomplete: "off", spellcheck: "false", pattern: "[A-Za-z0-9_\\-]+" })) : "",
    editedFields(kind, entry).map(([key, type]) => fieldRow(key, entryField(key, type, entry, isFixed))),
    kind === "agents" && !isFixed ? createElement("label", { class: "check" }, createElement("input", { type: "checkbox", name: "verify", checked: true }), " ", translate("verify")) : "",
    isFixed ? createElement("p", { class: "quiet" }, translate("readOnly", entry.origin)) : createElement("div", { class: "bar" },
      createElement("button", { type: "submit", class: "main", "data-key": "save" }, translate("save")),
      isNew ? "" : createElement("button", { type: "button", "data-key": "remove", onclick: () => removeEntry(kind, name, tag) }, translate("remove"))),
    message);
  if (!isFixed) form.elements[0].autofocus = true;
  form.addEventListener("submit", (event) => { event.preventDefault(); saveEntry(kind, name, entry, tag, form, message); });
  dialog.replaceChildren(dialogTitle(isNew ? translate(kind === "agents" ? "newAgent" : "newClient") : name), form, kind === "clients" && !isNew ? keyList(name, entry, isFixed) : "");
  if (!dialog.open) showDialog(dialog);
}

function fieldRow(label, field) { return createElement("label", null, createElement("span", null, label), field); }

function entryField(key, type, entry, isFixed) {
  const value = entry?.[key], common = { name: key, disabled: isFixed, autocomplete: type === "password" ? "new-password" : "off", spellcheck: "false" };
  if (type === "checkbox") return createElement("input", { ...common, type, checked: value === true });
  if (type === "list") {
    const field = createElement("textarea", { ...common, rows: 2 });
    field.value = (value ?? []).join("\n");
    return field;
  }
  // A secret is never shown; an empty field keeps it.
  const shown = type === "password" ? "" : value ?? "";
  return createElement("input", { ...common, type: type === "number" ? "text" : type, inputmode: type === "number" ? "numeric" : null, value: shown, placeholder: type === "password" && value ? translate("keepSecret") : null });
}

// The members that changed; null removes one.
function changedMembers(kind, entry, form) {
  const changes = {};
  for (const [key, type] of editedFields(kind, entry)) {
    const field = form.elements[key], text = field.value.trim(), before = entry?.[key] ?? null;
    const lines = text.split(/[\n,]+/).map((line) => line.trim()).filter(Boolean);
    const value = type === "checkbox" ? field.checked || null : type === "list" ? lines.length ? lines : null : text === "" ? null : type === "number" ? Number(text) : text;
    if (type === "password" && value === null) continue;
    if (JSON.stringify(value) !== JSON.stringify(before === false ? null : before)) changes[key] = value;
  }
  return changes;
}

async function saveEntry(kind, name, entry, tag, form, message) {
  const changes = changedMembers(kind, entry, form), target = name ?? form.elements.name.value.trim();
  const query = form.elements.verify?.checked ? "?verify=1" : "";
  message.textContent = translate("saving");
  try {
    const saved = name === null
      ? await changeApi("PUT", entryPath(kind, target) + query, { ...withoutNulls(changes), ...kind === "clients" ? { key_sha256: placeholderHash() } : {} }, { "If-None-Match": "*" })
      : await changeApi("PATCH", entryPath(kind, target) + query, changes, tag ? { "If-Match": tag } : {});
    message.textContent = "";
    if (!saved) return;
    notice(translate("saved", target), "good");
    if (name === null && kind === "clients") await replacePlaceholder(target); else byId("exchange").close();
    refresh();
  } catch (error) {
    message.textContent = translate("error", error.message);
  }
}

// A client needs a key from the start: a hash of which there is no key, until the first one is made.
function placeholderHash() { return [...crypto.getRandomValues(new Uint8Array(32))].map((byte) => byte.toString(16).padStart(2, "0")).join(""); }

async function replacePlaceholder(name) {
  const { keys } = await callApi(entryPath("clients", name)), made = await changeApi("POST", entryPath("clients", name) + "/keys");
  for (const { id } of keys) await changeApi("DELETE", entryPath("clients", name) + "/keys/" + encodeURIComponent(id));
  await openEntry("clients", name);
  showMadeKey(made);
}

function showMadeKey({ id, key }) { byId("made-key").replaceChildren(translate("madeKey", id), createElement("pre", { tabindex: 0 }, key)); }

function withoutNulls(members) { return Object.fromEntries(Object.entries(members).filter(([, value]) => value !== null)); }

async function removeEntry(kind, name, tag) {
  if (!await confirmAction(translate("confirmRemove", name), translate(kind === "agents" ? "confirmRemoveAgent" : "confirmRemoveClient"), translate("remove"))) return;
  await changeEntry("DELETE", entryPath(kind, name), () => { byId("exchange").close(); return translate("removed", name); }, tag ? { "If-Match": tag } : {});
}

function keyList(name, { keys }, isFixed) {
  const items = keys.map(({ id, created }) => createElement("li", null, createElement("code", null, id), created ? " " + formatTime(created) : "",
    isFixed ? "" : createElement("button", { type: "button", "aria-label": translate("removeKeyOf", id), onclick: () => removeKey(name, id) }, translate("remove"))));
  return createElement("section", { class: "keys", "aria-labelledby": "keys-title" }, createElement("h3", { id: "keys-title" }, translate("keys")), createElement("ul", null, items),
    isFixed ? "" : createElement("button", { type: "button", "data-key": "new key", onclick: () => makeKey(name) }, translate("newKey")), createElement("p", { id: "made-key", role: "status" }));
}

async function makeKey(name) {
  await changeEntry("POST", entryPath("clients", name) + "/keys", async (made) => {
    await openEntry("clients", name);
    showMadeKey(made);
    return "";
  });
}

async function removeKey(name, id) {
  if (!await confirmAction(translate("confirmRemoveKey", id), translate("confirmRemoveKeyDetail"), translate("remove"))) return;
  await changeEntry("DELETE", entryPath("clients", name) + "/keys/" + encodeURIComponent(id), async () => { await openEntry("clients", name); return translate("removed", id); });
}

// Makes a change; `describe` turns its result into the text of the notice.
async function changeEntry(method, path, describe, headers) {
  try {
    const result = await changeApi(method, path, undefined, headers);
    if (!result) return;
    const text = await describe(result);
    if (text) notice(text, "good");
  } catch (error) {
    notice(translate("error", error.message), "bad");
  }
  refresh();
}
