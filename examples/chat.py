"""A chat of two turns: the answer is printed while it is written, then the conversation goes on with it.

python examples/chat.py
"""

from stretto import LLM, Sampling

QUESTIONS = ["Name three instruments of an orchestra.", "Which of them is the loudest?"]


def main() -> None:
    llm = LLM("smollm2")
    sampling = Sampling(temperature=0.7, seed=7, max_tokens=32)  # the seed makes the draw repeatable
    messages: list[dict[str, str]] = []
    for question in QUESTIONS:
        print(f"> {question}")
        messages.append({"role": "user", "content": question})
        answer = ""
        for chunk in llm.chat_stream(messages, sampling):
            print(chunk.text, end="", flush=True)
            answer += chunk.text
        print("\n")
        messages.append({"role": "assistant", "content": answer})


if __name__ == "__main__":
    main()
