// Requests to the server, and helpers that both pages use.
export const byId = (id) => document.getElementById(id);

export async function ask(address, options = {}) {
  let answer;
  try {
    answer = await fetch(address, { credentials: "omit", ...options });
  } catch {
    throw new Error("the server does not answer: is it still running?");
  }
  let content;
  try {
    content = await answer.json();
  } catch {
    throw new Error(`the server answered with status ${answer.status} and no content`);
  }
  if (!answer.ok) throw new Error(content.error ?? `the server answered with status ${answer.status}`);
  return content;
}

export function say(id, text) {
  byId(id).textContent = text;
}

export function make(name, className, ...children) {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.append(...children);
  return element;
}
