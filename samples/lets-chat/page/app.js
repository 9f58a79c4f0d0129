"use strict";
// Everything that people wrote goes into the page as text, never as markup.

const $ = (id) => document.getElementById(id);
const make = (tag, props = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== null) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
};

const state = {
  about: null, me: null, rooms: [], room: null, newest: [], older: [], cursor: null,
  found: null, reply: null, file: null, seen: new Map(), round: 0,
};

async function api(path, options = {}) {
  if (options.json !== undefined) {
    options = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(options.json) };
  }
  const answer = await fetch(path, options);
  const value = await answer.json().catch(() => null);
  if (!answer.ok) {
    const error = new Error(value?.detail ?? `${answer.status} ${answer.statusText}`);
    error.status = answer.status;
    throw error;
  }
  return value;
}

function notice(text) {
  $("notice").hidden = !text;
  $("notice").textContent = text ?? "";
}

// ---- rooms

function showRooms() {
  const items = state.rooms.map((room) => {
    const current = room.slug === state.room;
    if (current || !state.seen.has(room.slug)) state.seen.set(room.slug, room.messages);
    const fresh = room.messages - state.seen.get(room.slug);
    const count = make("span", { class: fresh > 0 ? "count new" : "count" }, fresh > 0 ? `+${fresh}` : room.messages.toLocaleString("en"));
    const link = make("a", { href: `#${room.slug}`, "aria-current": current ? "page" : undefined },
      make("span", { class: "name" }, room.title), count);
    return make("li", { class: room.kind }, link);
  });
  $("rooms").replaceChildren(...items);
  const room = state.rooms.find((room) => room.slug === state.room);
  $("room-title").textContent = room?.title ?? state.room ?? "";
  $("room-topic").textContent = room?.topic ?? "";
}

async function refreshRooms() {
  state.rooms = (await api("/api/rooms")).rooms;
  showRooms();
}

// ---- messages

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", timeZone: "UTC" });
const calendar = new Intl.DateTimeFormat("en-GB", { weekday: "long", day: "numeric", month: "long", year: "numeric", timeZone: "UTC" });
const size = (bytes) => bytes < 1024 ? `${bytes} B` : bytes < 1048576 ? `${(bytes / 1024).toFixed(1)} kB` : `${(bytes / 1048576).toFixed(1)} MB`;
const hue = (name) => [...name].reduce((sum, c) => (sum * 31 + c.codePointAt(0)) % 360, 7);
const initials = (name) => name.split(/\s+/).map((word) => [...word][0] ?? "").slice(0, 2).join("").toUpperCase();

function body(text) {
  const node = make("div", { class: "body", dir: "auto" });
  text.split(/```\n?/).forEach((part, index) => {
    if (index % 2 === 1) return node.append(make("pre", {}, part.replace(/\n$/, "")));
    for (const piece of part.split(/(https?:\/\/[^\s<>"']+)/)) {
      if (/^https?:\/\//.test(piece)) node.append(make("a", { href: piece, rel: "noreferrer noopener", target: "_blank" }, piece));
      else if (piece) node.append(piece);
    }
  });
  return node;
}

function attachment(upload) {
  const href = `/uploads/${upload.id}`;
  if (/^image\/(png|jpeg|gif|webp|bmp)$/.test(upload.contentType)) {
    return make("a", { href, target: "_blank" }, make("img", { class: "picture", src: href, alt: upload.name, loading: "lazy" }));
  }
  return make("a", { class: "filebox", href }, make("span", { "aria-hidden": "true" }, "▤"), make("span", {}, upload.name), make("small", {}, size(upload.length)));
}

function message(item, before) {
  const at = new Date(item.at);
  const author = item.author ?? { name: "gone", display: "Somebody who is gone" };
  const follows = before && !item.reply && before.author?.name === author.name && Math.abs(at - new Date(before.at)) < 300000;
  const time = clock.format(at);
  const content = make("div");
  if (!follows) content.append(make("div", { class: "meta" }, make("b", {}, author.display), make("time", { datetime: item.at }, time)));
  if (item.reply) content.append(make("div", { class: "quote" }, make("b", {}, `${item.reply.author} `), item.reply.excerpt));
  content.append(body(item.body));
  if (item.upload) content.append(attachment(item.upload));
  if (item.reactions.length) {
    content.append(make("div", { class: "given" }, ...item.reactions.map((one) =>
      make("button", { type: "button", onclick: () => react(item.n, one.emoji) }, `${one.emoji} ${one.count}`))));
  }
  const face = make("div", { class: "face", "aria-hidden": "true" }, initials(author.display));
  face.style.setProperty("--hue", hue(author.name));
  const node = make("article", { class: follows ? "message follows" : "message", id: `m${item.n}`, title: item.seq ? `#${item.seq} in this room` : `#${item.n}` },
    face, content);
  if (follows) node.append(make("span", { class: "stamp" }, time.slice(0, 5)));
  if (state.me) {
    const acts = make("div", { class: "acts" }, make("button", { type: "button", class: "quiet", title: "Answer", onclick: () => answer(item) }, "↩"));
    for (const emoji of state.about.reactions) {
      acts.append(make("button", { type: "button", class: "quiet", title: `React with ${emoji}`, onclick: () => react(item.n, emoji) }, emoji));
    }
    node.append(acts);
  }
  return node;
}

function showMessages(keep) {
  const box = $("messages");
  const bottom = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
  const height = box.scrollHeight, top = box.scrollTop;
  const all = state.found ?? [...state.older, ...state.newest];
  const nodes = [];
  if (state.found) nodes.push(make("div", { class: "day" }, `${all.length} found`));
  else if (state.cursor !== null) nodes.push(make("button", { type: "button", class: "quiet more", onclick: older }, "Show older messages"));
  if (!all.length) nodes.push(make("p", { class: "empty" }, "Nothing here yet."));
  let day = "", before = null;
  for (const item of all) {
    const date = calendar.format(new Date(item.at));
    if (date !== day) {
      nodes.push(make("div", { class: "day" }, day = date));
      before = null;
    }
    nodes.push(message(item, before));
    before = item;
  }
  box.replaceChildren(...nodes);
  if (keep === "top") box.scrollTop = top + box.scrollHeight - height;
  else if (keep === "bottom" || bottom) box.scrollTop = box.scrollHeight;
  else box.scrollTop = top;
}

async function newest(keep) {
  if (!state.room) return;
  const room = state.room;
  const page = await api(`/api/rooms/${room}/messages?limit=60`);
  if (room !== state.room) return;
  const text = JSON.stringify(page.messages);
  if (keep || text !== state.shown) {
    const gap = state.newest.filter((item) => !page.messages.some((other) => other.n === item.n));
    // What left the newest page joins the older ones, once these are open.
    if (state.older.length) state.older.push(...gap.filter((item) => item.n < (page.messages[0]?.n ?? 0)));
    else state.cursor = page.older;
    state.newest = page.messages;
    state.shown = text;
    if (!state.found) showMessages(keep);
  }
}

async function older() {
  const page = await api(`/api/rooms/${state.room}/messages?limit=100&before=${state.cursor}`);
  state.older.unshift(...page.messages);
  state.cursor = page.older;
  showMessages("top");
}

async function react(n, emoji) {
  if (!state.me) return openDialog();
  await guarded(() => api(`/api/rooms/${state.room}/messages/${n}/reactions`, { json: { emoji } }).then(() => newest("same")));
}

// ---- writing

function context() {
  const parts = [];
  if (state.reply) parts.push(`Answer to ${state.reply.author?.display ?? "a message"}: ${state.reply.body.slice(0, 60)}`);
  if (state.file) parts.push(`File: ${state.file.name} (${size(state.file.size)})`);
  $("context").hidden = !parts.length;
  $("context").replaceChildren(parts.join(" · "), make("button", { type: "button", class: "quiet", onclick: drop }, "Remove"));
}

function drop() {
  state.reply = state.file = null;
  $("file").value = "";
  context();
}

function answer(item) {
  state.reply = item;
  context();
  $("text").focus();
}

async function guarded(work) {
  try {
    notice(null);
    return await work();
  } catch (error) {
    notice(error.message);
  }
}

async function send() {
  const text = $("text").value.trim() || (state.file ? state.file.name : "");
  if (!text) return;
  await guarded(async () => {
    let upload = null;
    if (state.file) {
      if (state.file.size > state.about.maxUpload) throw new Error(`A file may have ${size(state.about.maxUpload)}.`);
      const name = state.file.name.slice(0, 80);
      upload = await api(`/api/uploads?name=${encodeURIComponent(name)}`,
        { method: "POST", headers: { "content-type": state.file.type || "application/octet-stream" }, body: state.file });
    }
    await api(`/api/rooms/${state.room}/messages`, { json: { body: text, replyTo: state.reply?.n ?? null, upload: upload?.id ?? null } });
    $("text").value = "";
    drop();
    await newest("bottom");
  });
}

// ---- who

function showMe() {
  $("who").textContent = state.me?.display ?? "Guest";
  $("sign").textContent = state.me ? "Sign out" : "Sign in";
  $("composer").hidden = !state.me;
  $("guest").hidden = Boolean(state.me);
}

function openDialog() {
  $("wrong").textContent = "";
  $("dialog").showModal();
}

async function sign() {
  if (!state.me) return openDialog();
  await guarded(() => api("/api/sign-out", { json: {} }));
  state.me = null;
  showMe();
  await start();
}

async function enter(event) {
  event.preventDefault();
  const way = event.submitter?.value ?? "sign-in";
  const name = $("name").value, password = $("password").value;
  try {
    state.me = await api(`/api/${way}`, { json: { name, password } });
    $("password").value = "";
    $("dialog").close();
    showMe();
    await start();
  } catch (error) {
    $("wrong").textContent = error.message;
  }
}

// ---- the whole

async function stats() {
  const { entries, uploadBytes, newest } = await api("/api/stats");
  const uploads = entries["uploads.files"] ?? entries.uploads ?? 0;
  const lines = [`${entries.messages.toLocaleString("en")} messages · ${entries.accounts.toLocaleString("en")} people`,
    `${uploads.toLocaleString("en")} files, ${size(uploadBytes)} · ${state.about.shape}`];
  if (newest) lines.push(`newest #${newest.n} in ${newest.room}`);
  $("stats").replaceChildren(...lines.flatMap((line) => [line, make("br")]));
}

async function openRoom() {
  const wanted = decodeURIComponent(location.hash.slice(1));
  const room = state.rooms.some((room) => room.slug === wanted) ? wanted : state.rooms[0]?.slug;
  Object.assign(state, { room, newest: [], older: [], cursor: null, found: null, shown: null });
  $("needle").value = "";
  $("side").classList.remove("open");
  drop();
  showRooms();
  await newest("bottom");
}

async function start() {
  await refreshRooms();
  await openRoom();
  await stats();
}

async function tick() {
  try {
    if (!document.hidden) {
      const had = state.rooms.find((room) => room.slug === state.room);
      await refreshRooms();
      const has = state.rooms.find((room) => room.slug === state.room);
      state.round += 1;
      // Messages are fetched when the room's counter moved, and now and then for what the counter doesn't tell.
      if (had?.messages !== has?.messages || had?.lastAt !== has?.lastAt || state.round % 5 === 0) await newest();
      if (state.round % 8 === 0) await stats();
      if ($("notice").dataset.lost) {
        delete $("notice").dataset.lost;
        notice(null);
      }
    }
  } catch (error) {
    $("notice").dataset.lost = "1";
    notice(error.status ? error.message : "The service can't be reached. Trying again …");
  }
  setTimeout(tick, 2000);
}

$("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
$("file").addEventListener("change", () => { state.file = $("file").files[0] ?? null; context(); });
$("sign").addEventListener("click", sign);
$("sign2").addEventListener("click", openDialog);
$("cancel").addEventListener("click", () => $("dialog").close());
$("credentials").addEventListener("submit", enter);
$("menu").addEventListener("click", () => $("side").classList.toggle("open"));
$("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark";
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", document.documentElement.dataset.theme);
});
$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const needle = $("needle").value.trim();
  guarded(async () => {
    state.found = needle ? (await api(`/api/rooms/${state.room}/search?q=${encodeURIComponent(needle)}`)).messages : null;
    showMessages("bottom");
  });
});
$("needle").addEventListener("input", () => {
  if (!$("needle").value && state.found) { state.found = null; showMessages("bottom"); }
});
window.addEventListener("hashchange", () => guarded(openRoom));

(async () => {
  const theme = localStorage.getItem("theme");
  if (theme) document.documentElement.dataset.theme = theme;
  state.about = await api("/api/about");
  $("title").textContent = document.title = state.about.title;
  $("version").textContent = state.about.version;
  $("text").maxLength = state.about.maxBody;
  await guarded(async () => {
    state.me = await api("/api/me");
    showMe();
    await start();
  });
  setTimeout(tick, 2000);
})();
