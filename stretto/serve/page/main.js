// The frame: views, colours, the key, and whether the server is there.

import { ApiError, get, key } from "./api.js";
import { Chat } from "./chat.js";
import { $ } from "./dom.js";
import { Monitor } from "./monitor.js";
import { Race } from "./race.js";
import { Replay } from "./replay.js";

const VIEWS = ["chat", "race", "monitor", "replay"];
const POLL_MS = 4000;
const THEMES = { auto: "as the system has them", light: "light", dark: "dark" };

const monitor = new Monitor({ onProblem: showProblem, onState: (state) => showReady(state) });
const replay = new Replay();
const chat = new Chat({ onProblem: showProblem });
const race = new Race({ onProblem: showProblem });

// -- views

function open(name, { focus = false } = {}) {
  for (const view of VIEWS) {
    const tab = $(`tab-${view}`), isOpen = view === name;
    tab.setAttribute("aria-selected", isOpen);
    tab.tabIndex = isOpen ? 0 : -1;
    $(view).hidden = !isOpen;
    if (isOpen && focus) tab.focus();
  }
  history.replaceState(null, "", `#${name}`);
  monitor.watch(name === "monitor");
  if (name === "chat" && !focus) $("prompt").focus();
}

for (const view of VIEWS) $(`tab-${view}`).addEventListener("click", () => open(view));
document.querySelector("nav").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const at = VIEWS.findIndex((view) => $(`tab-${view}`).getAttribute("aria-selected") === "true");
  open(VIEWS[(at + step + VIEWS.length) % VIEWS.length], { focus: true });
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("key-dialog").open) { chat.stop(); race.stop(); }
});

// -- colours

function paint(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  $("theme-button").textContent = theme[0].toUpperCase() + theme.slice(1);
  $("theme-button").title = `Colours: ${THEMES[theme]}`;
  localStorage.setItem("stretto-theme", theme);
}
const stored = localStorage.getItem("stretto-theme");
let theme = stored in THEMES ? stored : "auto";
paint(theme);
$("theme-button").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  theme = names[(names.indexOf(theme) + 1) % names.length];
  paint(theme);
});

// -- the key

function askForKey(why) {
  const dialog = $("key-dialog");
  if (dialog.open) return;
  $("key-why").textContent = why ?? "A key that this server asks for is kept in this tab only, until the tab is closed.";
  $("key").value = key.get();
  $("key-forget").hidden = !key.get();
  dialog.showModal();
}
$("key-button").addEventListener("click", () => askForKey());
$("key-forget").addEventListener("click", () => { key.set(""); $("key-dialog").close("forget"); });
$("key-form").addEventListener("submit", (event) => {
  if (event.submitter?.value === "ok" || !event.submitter) key.set($("key").value.trim());
});
$("key").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return; // the first button of the form is not the one that is meant
  event.preventDefault();
  $("key-ok").click();
});
$("key-dialog").addEventListener("close", () => {
  $("key").value = "";
  if ($("key-dialog").returnValue !== "cancel") look();
});

// -- the server

function say(state, text, notice = "") {
  $("status").dataset.state = state;
  $("status-text").textContent = text;
  $("status").title = text;
  $("notice").textContent = notice;
  $("notice").dataset.kind = state;
  $("notice").hidden = !notice;
}

function showReady(state) {
  const isDraining = state.status === "draining";
  say(isDraining ? "wait" : "ready", state.model, isDraining ? "The server is shutting down: it takes no new requests." : "");
  $("status").title = `${state.model} · ${state.backend} · context ${state.context.toLocaleString("en")}`;
  chat.know(state);
  race.know(state);
}

function showProblem(problem) {
  if (!(problem instanceof ApiError)) return;
  if (problem.status === 401) {
    say("wait", "key needed", "This server asks for an API key. The button Key, at the top, takes it.");
    askForKey(key.get() ? "The key was refused. It is kept in this tab only." : "This server asks for a key. It is kept in this tab only, until the tab is closed.");
  } else if (problem.isLoading) say("wait", "loading model", "The server is loading its model. This page goes on by itself when it is ready.");
  else if (problem.status === 0) say("gone", "server gone", "The server cannot be reached. This page tries again by itself; recordings play without it.");
  else if (problem.status >= 500) say("wait", "not ready", `${problem.message}.`);
}

async function look() {
  try {
    showReady(await get("stretto/state"));
  } catch (problem) {
    showProblem(problem);
  }
}

async function poll() {
  for (;;) {
    const isRefused = $("status-text").textContent === "key needed"; // asking again would only open the dialog again
    if (!document.hidden && !monitor.isWatching && !isRefused) await look();
    await new Promise((next) => setTimeout(next, $("status").dataset.state === "ready" ? POLL_MS : POLL_MS / 4));
  }
}

open(VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "chat");
poll();
