// The few things that every part of the page does with the document.

export const byId = (id) => document.getElementById(id);
export const say = (id, text) => {
  byId(id).textContent = text;
};
export const whole = new Intl.NumberFormat("en");

/** An element with these properties and children. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** A bar of so large a share; its meaning stands beside it in words. */
export function bar(share) {
  const filled = element("span");
  filled.style.width = `${Math.min(1, share) * 100}%`;
  const all = element("span", { className: "bar" }, filled);
  all.setAttribute("aria-hidden", "true");
  return all;
}
