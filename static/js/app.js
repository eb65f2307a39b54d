// What the pages do beyond HTML: theme, menus, tabs, dialogs, copy, toasts, polls, search palette, help.
// Every page and form works without it. No eval, no inline code, nothing but this file, theme.js and htmx.
const $ = (selector, from = document) => from.querySelector(selector);
const $$ = (selector, from = document) => [...from.querySelectorAll(selector)];
const csrf = () => $('meta[name="csrf-token"]')?.content ?? "";
const icon = (name) => {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `${document.body.dataset.icons}#${name}`);
  svg.append(use);
  return svg;
};

// --- toasts: notes leave (role=status), errors stay until closed (role=alert)
const toastBox = () => {
  const host = $$("dialog[open]").at(-1) ?? document.body; // above a modal dialog nothing else can be seen
  let box = $(":scope > .toasts", host);
  if (!box) {
    box = document.createElement("div");
    box.className = "toasts";
    host.append(box);
  }
  return box;
};
const dress = (toast) => {
  const close = document.createElement("button");
  close.type = "button";
  close.className = "btn btn-ghost btn-icon btn-sm";
  close.setAttribute("aria-label", "Dismiss");
  close.append(icon("x"));
  close.addEventListener("click", () => toast.remove());
  toast.append(close);
  if (toast.getAttribute("role") !== "alert") setTimeout(() => toast.remove(), 6000);
};
const say = (text, bad = false) => {
  const toast = document.createElement("div");
  const words = document.createElement("p");
  words.textContent = text;
  toast.className = bad ? "toast toast-bad" : "toast";
  toast.setAttribute("role", bad ? "alert" : "status");
  toast.append(icon(bad ? "circle-alert" : "info"), words);
  dress(toast);
  toastBox().append(toast);
};
// allauth's scripts: the browser's own words (a time-out, a refusal, no such key) are for the console at most
document.addEventListener("allauth.error", (event) => {
  event.preventDefault();
  say("No passkey or security key was used. Try again, or choose another way.", true);
});

// --- requests of our own
const post = async (url, data = {}) => {
  const answer = await fetch(url, {
    method: "POST",
    headers: { "X-CSRFToken": csrf(), "X-Requested-With": "fetch", Accept: "application/json" },
    body: new URLSearchParams(data),
    keepalive: true,
  });
  const body = answer.headers.get("Content-Type")?.includes("json") ? await answer.json() : {};
  if (!answer.ok) throw new Error(body.detail || "That did not work. Reload the page and try again.");
  return body;
};

// --- copy: text on the page, or a secret that is fetched for the clipboard and never rendered
const toClipboard = async (text) => {
  if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
  const field = document.createElement("textarea"); // plain http on another host has no clipboard API
  field.value = text;
  field.className = "sr-only";
  ($("dialog[open]") ?? document.body).append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  if (!done) throw new Error("The browser did not allow copying.");
};
const copy = async (button) => {
  try {
    let text = button.dataset.copy;
    if (button.dataset.copyUrl) text = (await post(button.dataset.copyUrl, { what: button.dataset.copyWhat ?? "" })).text;
    else if (!text) text = $("code, pre", button.closest(".code"))?.textContent ?? "";
    await toClipboard(text);
    say(button.dataset.copied || "Copied to the clipboard");
  } catch (error) {
    say(error.message, true);
  }
};

// --- theme
const showTheme = (theme) => {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  for (const button of $$("[data-theme-set]")) button.setAttribute("aria-pressed", String(button.dataset.themeSet === theme));
};
const setTheme = (button) => {
  const theme = button.dataset.themeSet;
  try { localStorage.setItem("theme", theme); } catch { /* the server remembers it as well */ }
  showTheme(theme);
  const url = button.form?.action;
  if (url) post(url, { theme }).catch(() => {});
};

// --- tabs of panels
const showTab = (tab) => {
  for (const other of $$("[role=tab]", tab.closest("[role=tablist]"))) {
    const on = other === tab;
    other.setAttribute("aria-selected", String(on));
    other.tabIndex = on ? 0 : -1;
    document.getElementById(other.getAttribute("aria-controls")).hidden = !on;
  }
};

// --- dialogs: #modal is filled by htmx; without JavaScript its links are pages
const open = (dialog) => dialog && !dialog.open && dialog.showModal();
const typed = (field) => {
  const button = $(field.dataset.confirmButton || "button[type=submit]", field.form);
  if (button) button.disabled = field.value.trim() !== field.dataset.confirm;
};

// --- busy buttons: one request at a time
const busy = (form, submitter, on) => {
  const button = submitter ?? $("button[type=submit], button:not([type])", form);
  if (!button || button.dataset.stay !== undefined) return;
  button.toggleAttribute("aria-busy", on);
  if (on) button.setAttribute("aria-busy", "true");
  button.disabled = on;
};

document.addEventListener("click", (event) => {
  const at = (selector) => event.target.closest(selector);
  for (const menu of $$("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
  const theme = at("[data-theme-set]");
  if (theme) { event.preventDefault(); setTheme(theme); }
  if (at("[role=tab]")) showTab(at("[role=tab]"));
  const opener = at("[data-dialog]");
  if (opener) { event.preventDefault(); open(document.getElementById(opener.dataset.dialog)); $(`#${opener.dataset.dialog} [autofocus]`)?.focus(); }
  const closer = at("[data-close]");
  if (closer && closer.closest("dialog")) { event.preventDefault(); closer.closest("dialog").close(); }
  if (event.target.matches?.("dialog")) event.target.close(); // the backdrop
  if (at("[data-copy], [data-copy-url]")) copy(at("[data-copy], [data-copy-url]"));
  const toggle = at("[data-toggle]");
  if (toggle) {
    const on = $(toggle.dataset.toggle).classList.toggle(toggle.dataset.toggleClass);
    toggle.setAttribute("aria-pressed", String(toggle.dataset.toggleInverse !== undefined ? !on : on));
  }
  const focus = at("[data-focus]");
  if (focus) { event.preventDefault(); $(focus.dataset.focus)?.select(); }
  const hide = at("[data-hide]");
  if (hide) hide.closest(hide.dataset.hide).remove();
  const pause = at("[data-pause]");
  if (pause) pause.setAttribute("aria-pressed", String(pause.getAttribute("aria-pressed") !== "true"));
});

document.addEventListener("keydown", (event) => {
  const field = event.target.closest?.("input, select, textarea, [contenteditable]");
  if (event.key === "Escape") for (const menu of $$("details.menu[open]")) { menu.open = false; menu.firstElementChild.focus(); }
  const list = event.target.closest?.("[role=tablist]");
  if (list && /^(Arrow(Left|Right)|Home|End)$/.test(event.key)) {
    const tabs = $$("[role=tab]", list);
    const step = { ArrowLeft: tabs.indexOf(event.target) - 1, ArrowRight: tabs.indexOf(event.target) + 1, Home: 0, End: -1 }[event.key];
    const next = tabs.at(step % tabs.length);
    event.preventDefault();
    next.click();
    next.focus();
  }
  const palette = $("#palette");
  if (palette?.open && /^Arrow(Up|Down)$/.test(event.key)) {
    const items = [$("input", palette), ...$$("a", palette)];
    event.preventDefault();
    items.at((items.indexOf(document.activeElement) + (event.key === "ArrowDown" ? 1 : -1)) % items.length).focus();
  }
  if (palette?.open && event.key === "Enter" && field) {
    event.preventDefault();
    if (field.value === $("#palette-list").dataset.shown) $("a", palette)?.click();
    else palette.dataset.go = ""; // the answer to what was typed is still on its way
  }
  if (field || event.ctrlKey || event.metaKey || event.altKey || $("dialog[open]")) return;
  if (event.key === "/") { event.preventDefault(); const own = $("[data-search]"); own ? own.focus() : (open(palette), $("input", palette)?.focus()); }
  if (event.key === "?") { event.preventDefault(); open($("#help")); }
});

document.addEventListener("input", (event) => { if (event.target.dataset?.confirm !== undefined) typed(event.target); });
document.addEventListener("change", (event) => { if (event.target.matches?.("[data-submit]")) event.target.form.requestSubmit(); });
// --- uploads: the same form, and how far it is; leaving the page ends it
const upload = (form) => {
  const request = new XMLHttpRequest();
  const shown = $("[data-upload-progress]", form);
  const stay = (event) => event.preventDefault();
  const done = (text) => {
    window.removeEventListener("beforeunload", stay);
    if (!text) return;
    shown.hidden = true;
    busy(form, null, false);
    say(text, true);
  };
  request.upload.addEventListener("progress", ({ loaded, total }) => {
    $("progress", shown).value = (loaded / total) * 100;
    $("p", shown).textContent = loaded < total ? `${Math.floor((loaded / total) * 100)} % sent` : "All of it came; it is looked at.";
  });
  request.addEventListener("load", () => {
    let body = {};
    try { body = JSON.parse(request.responseText); } catch { /* a page of errors */ }
    done(body.url ? "" : body.detail || "The file was not taken. Reload the page and try again.");
    if (body.url) location.assign(body.url);
  });
  request.addEventListener("error", () => done("The connection broke. Nothing of the file was kept."));
  request.open("POST", form.action);
  request.setRequestHeader("X-Requested-With", "fetch");
  request.setRequestHeader("Accept", "application/json");
  window.addEventListener("beforeunload", stay);
  shown.hidden = false;
  request.send(new FormData(form));
};
document.addEventListener("submit", (event) => {
  if (event.target.dataset.upload === undefined) return;
  event.preventDefault();
  upload(event.target);
  setTimeout(() => busy(event.target, event.submitter, true));
}, true);
document.addEventListener("submit", (event) => {
  if (event.target.method === "dialog" || event.defaultPrevented || event.target.hasAttribute("hx-get")) return;
  setTimeout(() => busy(event.target, event.submitter, true)); // after the submitter's value was taken
});
window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); }); // no stale secrets or buttons

// --- clocks of what is at work; also at once when a poll brought it, so that it does not jump between two ways to say it
const tick = () => {
  for (const clock of $$("time[data-since]")) {
    const seconds = Math.max(0, Math.round((Date.now() - Date.parse(clock.dataset.since)) / 1000));
    clock.textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  }
};
document.addEventListener("htmx:load", tick);

// --- polls: `poll` is fired at [data-poll="seconds"] only while somebody looks
const due = new WeakMap();
setInterval(() => {
  if (document.visibilityState !== "visible") return;
  for (const part of $$("[data-poll]")) {
    const at = due.get(part) ?? performance.now() + Number(part.dataset.poll) * 1000;
    due.set(part, at);
    if (performance.now() < at) continue;
    due.set(part, performance.now() + Number(part.dataset.poll) * 1000);
    if (part.contains(document.activeElement) && $("details.menu[open]", part)) continue; // not under a finger
    if ($('[data-pause][aria-pressed="true"]')) { if (part.dataset.follow !== undefined) continue; }
    window.htmx?.trigger(part, "poll");
  }
  tick();
}, 500);

// --- secrets: what was revealed is masked again
const remask = (root) => {
  for (const part of [...(root.matches("[data-remask]") ? [root] : []), ...$$("[data-remask]", root)]) {
    setTimeout(() => part.isConnected && window.htmx.trigger(part, "remask"), Number(part.dataset.remask) * 1000);
  }
};

// --- logs: stay at the end, unless somebody scrolled up
const follow = (log) => { log.scrollTop = log.scrollHeight; };
const atEnd = (log) => log.scrollHeight - log.scrollTop - log.clientHeight < 48;

document.addEventListener("htmx:configRequest", (event) => { event.detail.headers["X-CSRFToken"] = csrf(); });
document.addEventListener("htmx:beforeRequest", (event) => {
  const form = event.target.closest("form");
  if (form && event.detail.requestConfig.verb !== "get") busy(form, event.detail.requestConfig.triggeringEvent?.submitter, true);
});
document.addEventListener("htmx:afterRequest", (event) => {
  const form = event.target.closest?.("form");
  if (form && event.detail.requestConfig.verb !== "get") busy(form, event.detail.requestConfig.triggeringEvent?.submitter, false);
});
document.addEventListener("htmx:beforeSwap", (event) => {
  for (const log of $$(".log[data-follow-end]", event.target.closest("section, .card") ?? document)) log.dataset.end = String(atEnd(log));
});
document.addEventListener("htmx:afterSwap", (event) => {
  if (event.target.id === "modal") {
    open(event.target);
    $("[autofocus]", event.target)?.focus();
    for (const field of $$("[data-confirm]", event.target)) typed(field);
  }
  if (event.target.id === "palette-list") {
    const palette = $("#palette");
    const shown = new URL(event.detail.pathInfo.finalRequestPath, location).searchParams.get("q") ?? "";
    event.target.dataset.shown = shown;
    if (palette.dataset.go !== undefined && shown === $("input", palette).value) { delete palette.dataset.go; $("a", palette)?.click(); }
  }
});
// --- what is swapped under somebody's focus keeps it: htmx itself looks at ids only, and a poll comes every few seconds
const REACHABLE = "a[href], button, input, select, textarea, summary, [tabindex]";
const called = (part) => part.getAttribute("aria-label") || part.textContent.trim();
let held = null;
document.addEventListener("htmx:beforeSwap", (event) => {
  const at = document.activeElement;
  const part = event.detail.target;
  const within = event.detail.shouldSwap && part?.id && at !== part && part.contains(at) && !at.id;
  if (within) held = { id: part.id, place: $$(REACHABLE, part).indexOf(at), words: called(at) }; // another answer keeps it
});
document.addEventListener("htmx:afterSettle", () => {
  const lost = held;
  held = null; // also when the focus has gone elsewhere: it is never brought back later
  const part = lost && document.getElementById(lost.id);
  if (!part || document.activeElement !== document.body) return;
  const all = $$(REACHABLE, part);
  const same = all.filter((each) => called(each) === lost.words);
  (same.includes(all[lost.place]) ? all[lost.place] : same[0])?.focus({ preventScroll: true });
});
// --- what changed by itself is said once, in a region that stays
// (a modal dialog silences the page below it, so each dialog has such a region of its own, made when it opens)
const announced = new Map();
const spoken = () => $$("[data-announce]").map((part) => [part.closest("[id]").id, part.dataset.announce, part]);
const announcer = (dialog) => {
  if (!dialog) return $("#announce");
  let region = $(":scope > .announce", dialog);
  if (!region) {
    region = document.createElement("p");
    region.className = "announce sr-only";
    region.setAttribute("role", "status");
    dialog.append(region);
  }
  return region;
};
document.addEventListener("htmx:afterSettle", () => {
  const dialog = $$("dialog[open]").at(-1);
  const region = announcer(dialog);
  const changed = spoken().filter(([id, words, part]) => words && announced.has(id) && announced.get(id) !== words && (!dialog || dialog.contains(part)));
  if (changed.length) region.textContent = changed.map(([, words]) => words).join(". ");
  for (const [id, words] of spoken()) announced.set(id, words);
});
document.addEventListener("htmx:load", (event) => {
  remask(event.target);
  for (const list of $$("[data-most]")) while (list.childElementCount > Number(list.dataset.most)) list.firstElementChild.remove();
  for (const log of $$(".log[data-follow-end]")) if (log.dataset.end !== "false") follow(log);
});
document.addEventListener("htmx:responseError", (event) => {
  const { status, responseText } = event.detail.xhr;
  if (status === 401 || (status === 403 && event.detail.requestConfig.verb === "get")) return location.reload();
  const words = new DOMParser().parseFromString(responseText, "text/html").querySelector("[data-problem]")?.textContent.trim();
  if (event.detail.requestConfig.triggeringEvent?.type !== "poll") say(words || "That did not work. Reload the page and try again.", true);
});
document.addEventListener("htmx:sendError", (event) => {
  if (event.detail.requestConfig.triggeringEvent?.type !== "poll") say("NovaStack cannot be reached. Check the connection and try again.", true);
});

document.addEventListener("DOMContentLoaded", () => {
  showTheme(document.documentElement.dataset.theme ?? "system");
  tick();
  for (const toast of $$(".toast")) dress(toast);
  for (const field of $$("[data-confirm]")) typed(field);
  for (const log of $$(".log[data-follow-end]")) follow(log);
  for (const tab of $$("nav.tabs [aria-current]")) tab.parentElement.scrollLeft = tab.offsetLeft - tab.parentElement.offsetLeft - 48; // on a phone
  for (const [id, words] of spoken()) announced.set(id, words);
  $("#modal")?.addEventListener("close", (event) => event.target.replaceChildren());
});
